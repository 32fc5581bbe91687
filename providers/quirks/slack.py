"""Slack's reply to a consent to user scopes only, whose token is in `authed_user`."""

import json

import httpx2

_MOVED = ("access_token", "refresh_token", "expires_in", "scope", "token_type")


def token_under_authed_user(reply: httpx2.Response) -> httpx2.Response:
    """Move the user's token, with its expiry, scope and refresh token, to the top level.

    Only without a bot token: mixed fields would pair one token with the other's refresh token. https://docs.slack.dev/authentication/installing-with-oauth
    """
    try:
        data = json.loads(reply.content)
    except (ValueError, RecursionError):
        return reply  # the reader of replies rejects it
    user = data.get("authed_user") if isinstance(data, dict) else None
    if not isinstance(user, dict) or "access_token" in data or "access_token" not in user:
        return reply
    lifted = {key: value for key, value in data.items() if key not in _MOVED}
    lifted |= {key: user[key] for key in _MOVED if key in user}
    lifted["authed_user"] = {key: value for key, value in user.items() if key not in _MOVED}
    return httpx2.Response(reply.status_code, headers=reply.headers, content=json.dumps(lifted).encode())
