"""A provider's reply as it was received."""

from dataclasses import dataclass, field
from typing import Self

import httpx2


@dataclass(frozen=True)
class RawReply:
    """Status, headers (names in lower case) and body. They may hold tokens, so no repr shows them."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, response: httpx2.Response) -> Self:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return cls(response.status_code, headers, response.content)
