"""Typed failures: their codes, who repairs each, and the exception that carries one."""

from evergrant_server.core.errors.codes import ErrorCode
from evergrant_server.core.errors.failure import Failure, allowance
from evergrant_server.core.errors.failure_table import FAILURES
from evergrant_server.core.errors.kinds import FailureKind, FailureRule, Repairer, RetryAdvice

__all__ = [
    "FAILURES",
    "ErrorCode",
    "Failure",
    "FailureKind",
    "FailureRule",
    "Repairer",
    "RetryAdvice",
    "allowance",
]
