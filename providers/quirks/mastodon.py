"""Mastodon registers clients on each server, in a format of its own."""

from typing import Any


def mastodon_app_request(metadata: dict[str, Any]) -> dict[str, Any]:
    """The body of `POST /api/v1/apps`, whose reply uses RFC 7591's names.

    Without scopes a Mastodon app may request only `read`.
    https://docs.joinmastodon.org/methods/apps/#create
    """
    app = {
        "client_name": metadata["client_name"],
        "redirect_uris": "\n".join(metadata["redirect_uris"]),  # servers before 4.3 expect one string
    }
    return app | ({"scopes": metadata["scope"]} if metadata.get("scope") else {})
