"""Mastodon registers clients at each of its servers, in words of its own instead of RFC 7591's."""

from typing import Any


def mastodon_app_request(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `POST /api/v1/apps` wants. Its answer has RFC 7591's names, as far as it has any.

    Without scopes of ours a Mastodon app may ask for `read` alone.
    https://docs.joinmastodon.org/methods/apps/#create
    """
    app = {
        "client_name": metadata["client_name"],
        "redirect_uris": "\n".join(metadata["redirect_uris"]),  # servers before 4.3 take one text
    }
    return app | ({"scopes": metadata["scope"]} if metadata.get("scope") else {})
