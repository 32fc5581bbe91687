"""Named hooks for peculiarities that no field of a definition expresses, in one table.

Owns reshaping a reply before it is read (an authlib compliance hook) and the format of a
registration. Doesn't interpret replies (`providers.responses`). A definition lists quirks by name.
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
    """A hook: the authlib compliance hooks that it reshapes, or the format of a registration."""

    hooks: tuple[ResponseHook, ...] = ()
    reshape: Callable[[httpx2.Response], httpx2.Response] = lambda reply: reply
    registration: Callable[[dict[str, Any]], dict[str, Any]] | None = None


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
