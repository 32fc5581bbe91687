"""Requests signed by Evergrant, where a connection's token is no bearer token (OAuth 1.0a)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from evergrant.calls import Answer, Call
from evergrant.fields import Fields
from evergrant.replies import Response, parse_body

FormFields = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Signature:
    """Headers to send one request with, soon. `repr` leaves them out."""

    headers: Mapping[str, str] = field(repr=False)
    generation: int
    connection_id: str


def sign_call(connection_id: str, method: str, url: str, form: FormFields | None) -> Call[Signature]:
    """Safe to send again: each answer is another signature."""
    pairs = list(form.items()) if isinstance(form, Mapping) else list(form or ())
    body = {"method": method.upper(), "url": url, "form": [list(pair) for pair in pairs]}
    path = f"/v1/connections/{quote(connection_id, safe='')}/signatures"
    return Call("POST", path, _signature, body=body)


def _signature(reply: Response) -> Signature:
    body = parse_body(reply, "signature")
    headers = Fields.of(body.mapping("headers"), "signature's headers")
    return Signature(
        headers={name: headers.text(name) for name in headers.members},
        generation=body.integer("generation"),
        connection_id=body.text("connection_id"),
    )


class Signatures(ABC):
    """What `Evergrant` does for connections whose requests are signed."""

    @abstractmethod
    def _do(self, call: Call[Answer]) -> Answer: ...

    def sign(self, connection_id: str, method: str, url: str, form: FormFields | None = None) -> Signature:
        """Sign one request. `url` with its query, as it will be sent; `form` is its body, if that is one.

        Needs a permit with the action `token`, as a lease does.
        """
        return self._do(sign_call(connection_id, method, url, form))


class AsyncSignatures(ABC):
    """What `AsyncEvergrant` does for connections whose requests are signed."""

    @abstractmethod
    async def _do(self, call: Call[Answer]) -> Answer: ...

    async def sign(
        self, connection_id: str, method: str, url: str, form: FormFields | None = None
    ) -> Signature:
        """Sign one request. `url` with its query, as it will be sent; `form` is its body, if that is one.

        Needs a permit with the action `token`, as a lease does.
        """
        return await self._do(sign_call(connection_id, method, url, form))
