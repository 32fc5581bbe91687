"""Named hooks for peculiarities that no field of a definition expresses, in one table.

Owns reshaping a reply before it is read (an authlib compliance hook) and the format of a
registration. Doesn't interpret replies (`providers.responses`). A definition lists quirks by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

ResponseHook = Literal["access_token_response", "refresh_token_response"]
_SLACK_USER_FIELDS = ("access_token", "refresh_token", "expires_in", "scope", "token_type")


@dataclass(frozen=True)
class Quirk:
    """A hook: the authlib compliance hooks that it reshapes, or the format of a registration."""

    hooks: tuple[ResponseHook, ...] = ()
    reshape: Callable[[httpx2.Response], httpx2.Response] = lambda reply: reply
    registration: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def token_under_authed_user(reply: httpx2.Response) -> httpx2.Response:
    """Move the token of Slack's `authed_user`, with its expiry, scope and refresh token, to the top level.

    Only in a reply without a bot token: mixed fields would pair one token with the other's refresh token.
    https://docs.slack.dev/authentication/installing-with-oauth
    """
    try:
        data = json.loads(reply.content)
    except (ValueError, RecursionError):
        return reply  # the reader of replies rejects it
    user = data.get("authed_user") if isinstance(data, dict) else None
    if not isinstance(user, dict) or "access_token" in data or "access_token" not in user:
        return reply
    lifted = {key: value for key, value in data.items() if key not in _SLACK_USER_FIELDS}
    lifted |= {key: user[key] for key in _SLACK_USER_FIELDS if key in user}
    lifted["authed_user"] = {key: value for key, value in user.items() if key not in _SLACK_USER_FIELDS}
    return httpx2.Response(reply.status_code, headers=reply.headers, content=json.dumps(lifted).encode())


def mastodon_app_request(metadata: dict[str, Any]) -> dict[str, Any]:
    """The body of Mastodon's `POST /api/v1/apps`, whose reply uses RFC 7591's names.

    Without scopes a Mastodon app may request only `read`.
    https://docs.joinmastodon.org/methods/apps/#create
    """
    app = {
        "client_name": metadata["client_name"],
        "redirect_uris": "\n".join(metadata["redirect_uris"]),  # servers before 4.3 expect one string
    }
    return app | ({"scopes": metadata["scope"]} if metadata.get("scope") else {})


QUIRKS: Mapping[str, Quirk] = {
    "mastodon_apps": Quirk(registration=mastodon_app_request),
    "token_under_authed_user": Quirk(("access_token_response",), token_under_authed_user),
}


def registration_request(quirks: Sequence[str], metadata: dict[str, Any]) -> dict[str, Any]:
    """The body of a registration (RFC 7591 section 2), in the provider's own format if it has one."""
    for name in quirks:
        write = QUIRKS[name].registration
        if write is not None:
            return write(metadata)
    return metadata
