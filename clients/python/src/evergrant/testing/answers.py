"""What the fake sends back."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FakeResponse:
    """Status 0 means none at all: the connection is closed."""

    status: int
    body: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    media_type: str = "application/json"


def problem(
    status: int, kind: str, code: str, *, retry_after: float | None = None, **more: object
) -> FakeResponse:
    """A problem document (RFC 9457), as Evergrant writes them."""
    body = {
        "type": f"/docs#{code}",
        "title": code,
        "status": status,
        "detail": "the fake was told to",
        "code": code,
        "kind": kind,
        "repair": "Tell the fake something else.",
        **more,
    }
    headers: dict[str, str] = {}
    if retry_after is not None:
        body["retry_after"] = retry_after
        headers["retry-after"] = str(max(1, round(retry_after)))
    return FakeResponse(status, body, headers, "application/problem+json")
