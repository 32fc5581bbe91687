"""The HTTP responses of the fake."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FakeResponse:
    """A status of 0 closes the connection without a response."""

    status: int
    body: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    media_type: str = "application/json"


def problem(
    status: int, kind: str, code: str, *, retry_after: float | None = None, **more: object
) -> FakeResponse:
    """A problem document (RFC 9457) in Evergrant's format."""
    body = {
        "type": f"/docs#{code}",
        "title": code,
        "status": status,
        "detail": "the fake was told to",
        "code": code,
        "kind": kind,
        "repair": "Script another response.",
        **more,
    }
    headers: dict[str, str] = {}
    if retry_after is not None:
        body["retry_after"] = retry_after
        headers["retry-after"] = str(max(1, round(retry_after)))
    return FakeResponse(status, body, headers, "application/problem+json")
