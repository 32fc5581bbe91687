"""Named oddities that no field of a definition can say, in one table.

A quirk is an authlib compliance hook: the hook's name and a function from a reply to a
reply. It may reshape, never decide: judging stays in `replies.py`. A definition asks for a
quirk by name; nothing registers itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import httpx2

from providers.quirks.slack import token_under_authed_user

ResponseHook = Literal["access_token_response", "refresh_token_response"]


@dataclass(frozen=True)
class Quirk:
    """One oddity: which of authlib's compliance hooks it uses, and what it does there."""

    hooks: tuple[ResponseHook, ...]
    reshape: Callable[[httpx2.Response], httpx2.Response]


QUIRKS: Mapping[str, Quirk] = {
    "token_under_authed_user": Quirk(("access_token_response",), token_under_authed_user),
}
