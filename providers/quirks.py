"""Named hooks for peculiarities that no field of a definition expresses, in one table.

Owns reshaping a reply before it is read and the format of a registration. Doesn't interpret replies
(`providers.responses`). A definition lists quirks by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SLACK_USER_FIELDS = ("access_token", "refresh_token", "expires_in", "scope", "token_type")


@dataclass(frozen=True)
class Quirk:
    """A hook: how the body of a reply is reshaped unless it answers a refresh, or a registration's format."""

    first_reply: Callable[[bytes], bytes] | None = None
    registration: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def token_under_authed_user(body: bytes) -> bytes:
    """Move the token of Slack's `authed_user`, with its expiry, scope and refresh token, to the top level.

    Only in a reply without a bot token: mixed fields would pair one token with the other's refresh token.
    https://docs.slack.dev/authentication/installing-with-oauth
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body  # the reader of replies rejects it
    user = data.get("authed_user") if isinstance(data, dict) else None
    if not isinstance(user, dict) or "access_token" in data or "access_token" not in user:
        return body
    lifted = {key: value for key, value in data.items() if key not in _SLACK_USER_FIELDS}
    lifted |= {key: user[key] for key in _SLACK_USER_FIELDS if key in user}
    lifted["authed_user"] = {key: value for key, value in user.items() if key not in _SLACK_USER_FIELDS}
    return json.dumps(lifted).encode()


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
    "token_under_authed_user": Quirk(token_under_authed_user),
}


def reshaped_first_reply(quirks: Sequence[str], body: bytes) -> bytes:
    """The body of a reply as its readers expect it. Replies to refreshes have the standard's fields."""
    for name in quirks:
        reshape = QUIRKS[name].first_reply
        body = reshape(body) if reshape is not None else body
    return body


def registration_request(quirks: Sequence[str], metadata: dict[str, Any]) -> dict[str, Any]:
    """The body of a registration (RFC 7591 section 2), in the provider's own format if it has one."""
    for name in quirks:
        write = QUIRKS[name].registration
        if write is not None:
            return write(metadata)
    return metadata
