"""A provider's answer as it came, before anybody judged it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RawReply:
    """Status, headers (names in lower case) and body. It may hold tokens, so it never shows itself."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
