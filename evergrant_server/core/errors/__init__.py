"""Typed failures: their codes, who repairs each, and the exception that carries one."""

from evergrant_server.core.errors.codes import ErrorCode
from evergrant_server.core.errors.failure import Failure, allowance
from evergrant_server.core.errors.kinds import FailureKind, FailureRule, Repairer, RetryAdvice
from evergrant_server.core.errors.repairers import FAILURES

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
