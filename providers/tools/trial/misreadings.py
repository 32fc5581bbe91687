"""A misread reply as a vector's refusal, without secrets; and a vector's refusals, read again. Pure.

For who reports a misreading: the file says what the reply is, and the definition is mended until it agrees.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import RequestKind
from providers.responses.raw_reply import RawReply
from providers.tools.explanation import code_of
from providers.tools.trial.observation import Observation
from providers.tools.trial.vector_replies import refused_reply
from providers.tools.vector_shape import Vector, VectorRefusal

RefusalKind = Literal["dead_token", "dead_code", "subject", "client", "passing"]
_CODES: dict[RefusalKind, ErrorCode] = {
    "dead_token": ErrorCode.GRANT_REJECTED,
    "dead_code": ErrorCode.GRANT_REJECTED,
    "subject": ErrorCode.GRANT_REJECTED,
    "client": ErrorCode.CLIENT_REJECTED,
    "passing": ErrorCode.PROVIDER_ERROR,
}


def refusal_of(
    spec: ProviderSpec, reply: RawReply, at: RequestKind, of: RefusalKind, source: str
) -> dict[str, Any]:
    """The refusal that a reply should be read as; what is read as a limit stays one."""
    limited = of == "passing" and code_of(spec, reply, at) == ErrorCode.PROVIDER_RATE_LIMITED
    expected = ErrorCode.PROVIDER_RATE_LIMITED if limited else _CODES[of]
    kind = {} if at == "refresh" else {"at": at}
    shown = refused_reply(spec, reply)
    return {"of": of, **kind, "reply": shown, "code": expected.value, "source": source}


def with_refusal(spec: ProviderSpec, vector: Mapping[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """The vector with this refusal, once; an empty one becomes a vector of it alone.

    Raises Failure INVALID_REQUEST for a mapping that is no vector.
    """
    begun = dict(vector) or {"scopes": list(spec.default_scopes)}
    if vector:
        _checked(begun)
    refusals = begun.get("refusals", [])
    return {**begun, "refusals": [*refusals, *([] if refusal in refusals else [refusal])]}


def observed_refusals(spec: ProviderSpec, vector: Mapping[str, Any]) -> Iterator[Observation]:
    """What each refusal of a vector is read as by a definition, beside what the vector says.

    Raises Failure INVALID_REQUEST for a mapping that is no vector.
    """
    for number, refusal in enumerate(_checked(vector).refusals):
        at: RequestKind = refusal.at or "refresh"
        code = code_of(spec, _raw(refusal), at)
        step = f"refusal {number + 1}: {refusal.of} at the {at}"
        seen = Observation(step, [f"status {refusal.reply.status}"], [f"read as {code}"])
        if code != refusal.code:
            seen.differs.append(f"it is {refusal.code}")
        yield seen


def _checked(vector: Mapping[str, Any]) -> Vector:
    try:
        return Vector.model_validate(vector)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "vector"
        why = f"the file is no vector: {field}: {error.errors()[0]['msg'].lower()}"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="vector") from None


def _raw(refusal: VectorRefusal) -> RawReply:
    reply = refusal.reply
    body = json.dumps(reply.body) if reply.body is not None else reply.text or ""
    return RawReply(
        reply.status, {name.lower(): value for name, value in reply.headers.items()}, body.encode()
    )
