"""The arguments of the tools. Their descriptions are read by models."""

import json
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema

from evergrant_server.api.connections.models import checked_connection_id
from evergrant_server.api.http.models import Body, Label, Scopes, Slug, StorableText, Subject, Text
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.gateway.proxy.headers import passed_headers
from evergrant_server.policy import method_overrides

MOST_BODY = 64 * 1024
_SAFE = "/%:@!$&'()*+,;=?~-._[]"


def _approval_id(value: str) -> str:
    if not is_id(value, "cap"):
        raise ValueError("is not the id of an approval")
    return value


_Id = Annotated[
    ConnectionId,
    AfterValidator(checked_connection_id),
    Field(description="The connection's id, con_…, as list_connections shows it."),
]
_Who = Annotated[
    Subject | None, Field(description="Whose account: the subject. Needed where you act for several.")
]
_Cursor = Annotated[str | None, Field(max_length=2000, description="next_cursor of the page before.")]
_Reason = Annotated[
    Text, Field(description="Why this call is needed, in a sentence for the person who decides.")
]
_HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
_HeaderValue = Annotated[str, Field(pattern=r"^[ -~]{0,1000}$")]


class ListConnections(Body):
    subject: _Who = None
    integration: Annotated[Slug | None, Field(description="Of this integration alone.")] = None
    state: Annotated[
        LifecycleState | None, Field(description="In this state alone; calls work while it is active.")
    ] = None
    cursor: _Cursor = None


class ListIntegrations(Body):
    cursor: _Cursor = None


class DescribeConnection(Body):
    connection_id: _Id


class RequestConnection(Body):
    integration: Annotated[Slug, Field(description="The integration's name, as list_integrations shows it.")]
    subject: _Who = None
    label: Annotated[Label, Field(description="Tells several accounts of one subject apart.")] = "default"
    scopes: Annotated[
        Scopes | None, Field(description="What is needed there; left out: what the integration asks for.")
    ] = None


class RequestArguments(Body):
    """One request to the API of a connection."""

    connection_id: _Id
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Annotated[
        StorableText,
        Field(
            min_length=1,
            max_length=8000,
            pattern="^/",
            description="Path and query behind the connection's api_base_url: /user/repos?per_page=5.",
        ),
    ]
    body: Annotated[
        JsonValue,
        WithJsonSchema({"description": "The request's body: any JSON value; a string is sent as it is."}),
    ] = None
    headers: Annotated[
        dict[_HeaderName, _HeaderValue],
        Field(
            default_factory=dict,
            max_length=20,
            description="Further headers. Never a credential: it is added on the way. What proxies say, such "
            "as X-Forwarded-For, is left out.",
        ),
    ]

    @property
    def content(self) -> bytes:
        """The body's bytes. The same arguments are always the same bytes: approvals are for them."""
        if self.body is None:
            return b""
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """The model's headers that the proxy lets go on, the kind of the body, and what the proxy refuses
        where a permit names methods."""
        named = [(name.lower().encode(), value.strip(" ").encode()) for name, value in self.headers.items()]
        if self.content and all(name != b"content-type" for name, _ in named):
            kind = b"text/plain; charset=utf-8" if isinstance(self.body, str) else b"application/json"
            named.append((b"content-type", kind))
        passed = passed_headers(named)
        return passed + [
            header for header in named if header not in passed and method_overrides(b"", [header])
        ]

    @property
    def target(self) -> tuple[bytes, bytes]:
        """Path without its leading slash, and query, as they are sent."""
        path, _, query = self.path.partition("?")
        return quote(path[1:], safe=_SAFE).encode(), quote(query, safe=_SAFE).encode()


class CallApi(RequestArguments):
    reason: Annotated[
        Text | None,
        Field(description="Why this call is needed, for the person who has to approve it, if one has to."),
    ] = None


class RequestApproval(RequestArguments):
    reason: _Reason


class GetApproval(Body):
    approval_id: Annotated[str, AfterValidator(_approval_id), Field(description="The approval's id, cap_….")]
