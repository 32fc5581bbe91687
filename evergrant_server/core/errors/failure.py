"""The exception that carries a failure, and the end of a refusal that says how a host is allowed."""

import re

from evergrant_server.core.errors.codes import ErrorCode
from evergrant_server.core.errors.failure_table import FAILURES
from evergrant_server.core.errors.kinds import FailureKind, FailureRule, Repairer

_ALLOW = "if it is a server of yours, start Evergrant anew with: EVERGRANT_EGRESS_ALLOW="
_COMMAND = r"(?: EVERGRANT_[A-Z_]+=[\w./-]+)*(?: make dev| [\w./-]+ -m evergrant_server [a-z ]+)?"
_ALLOWANCE = re.compile(rf"(.*); ({_ALLOW}[\w.:,\[\]-]+{_COMMAND})", re.DOTALL)
_MOST_ALLOWED = 500  # characters: a refusal crosses Temporal, and is cut there where it is long


def allowance(host_port: str, allowed: tuple[str, ...], start_command: str) -> str:
    """The end of a refusal's detail: how an operator allows this host, beside the hosts that are allowed."""
    hosts = ",".join(dict.fromkeys((*allowed, host_port)))
    if len(hosts) > _MOST_ALLOWED:
        return f"; add {host_port} to EVERGRANT_EGRESS_ALLOW if it is a server of yours"
    return f"; {_ALLOW}{hosts} {start_command}".rstrip()


class Failure(Exception):
    """A typed failure: a code of the table, a message without secrets, and context without secrets.

    `retry_after` is in seconds. `context` goes on the wire (`connect_url`, `field`); its `repair` is exact,
    and its `repairer` another one than the code's where it is known better.
    So is that at the end of `detail`, which `problem` leaves out: what crosses Temporal is one text.
    """

    def __init__(
        self, code: ErrorCode, detail: str = "", *, retry_after: float | None = None, **context: str
    ) -> None:
        super().__init__(f"{code.value}: {detail or FAILURES[code].meaning}")
        self.code = code
        self.detail = detail or FAILURES[code].meaning
        self.retry_after = retry_after
        self.context = context
        exact = _ALLOWANCE.fullmatch(detail) if code is ErrorCode.EGRESS_REFUSED else None
        self.problem = exact[1] if exact else self.detail
        repair = f"I{exact[2][1:]}" if exact else FAILURES[code].repair
        self.repair = context.get("repair") or repair
        self.repairer = Repairer(context.get("repairer") or FAILURES[code].repairer)

    @property
    def rule(self) -> FailureRule:
        return FAILURES[self.code]

    @property
    def kind(self) -> FailureKind:
        return self.rule.kind
