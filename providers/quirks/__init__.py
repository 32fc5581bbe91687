"""Named oddities that no field of a definition can say, in one table.

A quirk reshapes: a reply on its way to the judge (an authlib compliance hook), or what we say of
ourselves when a server registers us. It never decides: judging stays in `replies.py`. A definition
asks for a quirk by name; nothing registers itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from providers.quirks.mastodon import mastodon_app_request
from providers.quirks.slack import token_under_authed_user

ResponseHook = Literal["access_token_response", "refresh_token_response"]


@dataclass(frozen=True)
class Quirk:
    """One oddity: which of authlib's compliance hooks it uses, and what it does there; or how a
    registration is written."""

    hooks: tuple[ResponseHook, ...] = ()
    reshape: Callable[[httpx2.Response], httpx2.Response] = lambda reply: reply
    registration: Callable[[dict[str, Any]], dict[str, Any]] | None = None


QUIRKS: Mapping[str, Quirk] = {
    "mastodon_apps": Quirk(registration=mastodon_app_request),
    "token_under_authed_user": Quirk(("access_token_response",), token_under_authed_user),
}


def registration_request(quirks: Sequence[str], metadata: dict[str, Any]) -> dict[str, Any]:
    """What is sent to a server that registers clients (RFC 7591 section 2), in its own words if any."""
    for name in quirks:
        write = QUIRKS[name].registration
        if write is not None:
            return write(metadata)
    return metadata
