"""Explains how a provider's reply is read: as what, by which rule of which file, and whose turn it is.

For operators who doubt a reading: the explanation names what to change, and has the reply as vectors do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx2

from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import CODE_LISTS, RequestKind
from providers.requests.device import DevicePending, read_device_token
from providers.responses.error_mapping import (
    error_name,
    is_token_refused,
    read_revocation,
    reading_of,
)
from providers.responses.raw_reply import RawReply
from providers.responses.reply_error import PassingError, UnnamedRefusal
from providers.responses.token_response import read_tokens
from providers.tools.trial.vector_replies import refused_reply

_SENT = httpx2.Request("POST", "https://provider.invalid/token")  # a reply's words are shown beside a request
_NEXT = {
    FailureKind.RECONNECT_NEEDED: "the subject is asked to consent again, and nothing is sent until then",
    FailureKind.CLIENT_MISCONFIGURED: "the integration's admin is told; the request is tried again, at first "
    "soon, then ever less often, and at once after a change of the integration",
    FailureKind.PROVIDER_UNAVAILABLE: "it is tried again after the stated wait, else after growing ones",
}


@dataclass(frozen=True)
class Explanation:
    """What the product makes of a reply. Every text is for people; `code` is stable."""

    provider: str
    at: RequestKind
    status: int
    code: str  # "success", "pending" or an error code
    error: str  # the error's name
    by: str  # what decided it
    repairer: str
    follows: str  # what happens next
    retry_after: float | None = None  # seconds
    provider_said: str = ""
    reply: str = ""  # as a vector has it, without what looks like a secret

    def __str__(self) -> str:
        lines = {
            "read as": self.code,
            "error": self.error,
            "by": self.by,
            "whose turn": self.repairer,
            "then": self.follows,
            "wait": "" if self.retry_after is None else f"{self.retry_after:g} s, as the reply says",
            "it says": self.provider_said,
            "reply": self.reply,
        }
        head = f"{self.provider}: status {self.status} at the {self.at}"
        return "\n".join([head, *(f"  {name:<11} {text}" for name, text in lines.items() if text)]) + "\n"


def explain(
    registry: Registry, name: str, at: RequestKind, status: int, headers: Sequence[str], body: bytes
) -> Explanation:
    """What the product makes of this reply. Raises Failure PROVIDER_UNKNOWN, INVALID_REQUEST."""
    spec, reply = registry.get(name), reply_from(status, headers, body)
    error = error_name(spec, reply, at)
    shown = json.dumps(refused_reply(spec, reply), ensure_ascii=False)
    plain = {"provider": name, "at": at, "status": status, "error": error or "", "reply": shown}
    try:
        _read(spec, reply, at)
    except DevicePending as pending:
        why = f"the poll goes on: {pending.poll.value}"
        return Explanation(**plain, code="pending", by="RFC 8628 section 3.5", repairer="time", follows=why)
    except Failure as failure:
        rule = FAILURES[failure.code]
        return Explanation(
            **plain,
            code=failure.code.value,
            by=_by(registry, spec, reply, at, failure),
            repairer=rule.repairer.value,
            follows=_follows(failure, at),
            retry_after=failure.retry_after,
            provider_said=str(getattr(failure, "said", None) or ""),
        )
    follows = "the grant is over" if at == "revocation" else "the tokens are stored"
    return Explanation(**plain, code="success", by="no error in it", repairer="nobody", follows=follows)


def reply_from(status: int, headers: Sequence[str], body: bytes) -> RawReply:
    """The reply that a user has seen. Raises Failure INVALID_REQUEST for a header without a name, and for a
    status that HTTP doesn't have (RFC 9110 section 15)."""
    if not 100 <= status <= 599:
        raise Failure(ErrorCode.INVALID_REQUEST, "a status is a number from 100 to 599", field="status")
    return RawReply(status, dict(map(_header, headers)), body, _SENT)


def code_of(spec: ProviderSpec, reply: RawReply, at: RequestKind) -> str:
    """What a reply is read as: an error code, "pending" or "success"."""
    try:
        _read(spec, reply, at)
    except DevicePending:
        return "pending"
    except Failure as failure:
        return failure.code.value
    return "success"


def _read(spec: ProviderSpec, reply: RawReply, at: RequestKind) -> None:
    now = datetime.now(UTC)
    if at == "revocation":
        read_revocation(spec, reply)
    elif at == "device":
        read_device_token(spec, reply, requested_scopes=(), now=now)
    else:
        read_tokens(spec, reply, requested_scopes=(), refreshing=at == "refresh", now=now)


def _by(registry: Registry, spec: ProviderSpec, reply: RawReply, at: RequestKind, failure: Failure) -> str:
    """The rule with its file, the list with its file, or the standard."""
    reading = reading_of(spec, reply, error_name(spec, reply, at), at)
    if reading.code is not failure.code:  # the reader of this request knows more, such as of device codes
        return "the standard of this request"
    extended = registry.get(spec.extends) if spec.extends else None
    file = spec
    if reading.rule is not None:
        rule = reading.rule.model_dump(mode="json", exclude_defaults=True)
        file = extended if extended is not None and reading.rule in extended.error_rules else spec
        return f"{_file(file)}: error_rules: {json.dumps(rule, ensure_ascii=False)}"
    if reading.by in CODE_LISTS:
        names = None if extended is None else extended.list_of(error_name(spec, reply, at))
        return f"{_file(extended if extended is not None and names else spec)}: {reading.by}"
    return reading.by


def _file(spec: ProviderSpec) -> str:
    return f"providers/catalog/{spec.name}.yaml"


def _follows(failure: Failure, at: RequestKind) -> str:
    if at == "revocation":
        refused = is_token_refused(failure)
        return "the token counts as gone" if refused else "the revocation is tried again, then unconfirmed"
    if at != "refresh" and failure.kind is FailureKind.RECONNECT_NEEDED:
        return "the consent has failed; its link can be opened again"
    undecided = failure.code in (ErrorCode.PROVIDER_ERROR, ErrorCode.CLIENT_REJECTED)
    if isinstance(failure, UnnamedRefusal) and undecided:
        return (
            "it is asked again within a minute; what other connections and introspection say then decides "
            "(docs/protocol.md, An error that keeps coming back)"
        )
    passing = ", and no grant ends by it" if isinstance(failure, PassingError) else ""
    return _NEXT[failure.kind] + passing


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise Failure(ErrorCode.INVALID_REQUEST, "a header is NAME: VALUE", field="header")
    return name.strip().lower(), value.strip()
