"""The account at the provider that a grant is for: who came, who was meant, and the pin. Pure.

Only an issuer's `sub` is stable; an email address can change hands (OpenID Connect Core 1.0 section
5.7). The store keeps keyed hashes: of the pin, the account of a connection's first grant, and of what
an app expects.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from evergrant_server.core.secret import SealableModel
from evergrant_server.core.text import is_storable_text

SUB, EMAIL = "sub", "email"
EXPECTABLE = (SUB, EMAIL, "hd", "tid")  # claims by which an app may say which account it expects
PIN = "account"  # the name of the pinned account's identifier
_LONGEST_NAME = 200


class OnReconnect(StrEnum):
    """Which account a later consent of a connection may be given with. A column: add, never rename."""

    SAME = "same"  # the pinned one
    ANY = "any"  # any account that the app's expectation allows; the pin follows it


class Account(SealableModel):
    """The account that a reply names. `id` is compared; `name` is for its owner to recognise it by."""

    id: str = Field(repr=False)
    name: str = Field(repr=False)
    claims: dict[str, str] = Field(default_factory=dict, repr=False)  # those of EXPECTABLE that it has

    @classmethod
    def of_id_token(cls, claims: Mapping[str, Any]) -> "Account | None":
        """The account of checked claims; None when they hold no text that can be kept."""
        issuer, sub = plain_issuer(claims["iss"]), claims[SUB]
        if not is_storable_text(issuer + sub):
            return None
        known = {name: claim for name in EXPECTABLE if isinstance(claim := claims.get(name), str)}
        if claims.get("email_verified") not in (True, "true"):  # Apple sends a string
            known.pop(EMAIL, None)
        names = [claims.get(name) for name in (EMAIL, "preferred_username")]
        shown = next(
            (name for name in names if isinstance(name, str) and name and name.isprintable()), str(sub)
        )
        return cls(
            id=json.dumps([issuer, sub]),
            name=shown[:_LONGEST_NAME],
            claims=known,
        )

    @classmethod
    def of_fact(cls, name: str, value: object) -> "Account | None":
        """The account that the provider's own id names, a fact of the grant; None without a usable one."""
        if isinstance(value, bool) or not isinstance(value, str | int) or not is_storable_text(str(value)):
            return None
        id = str(value)
        return cls(id=json.dumps([name, id]), name=id[:_LONGEST_NAME], claims={SUB: id}) if id else None


class ConsentAccount(SealableModel):
    """What a consent knows of accounts, sealed with it: the hint to send, and who came instead."""

    login_hint: str | None = Field(default=None, repr=False)
    came: str | None = Field(default=None, repr=False)


def plain_issuer(iss: str) -> str:
    """An issuer without a final slash, and without its scheme: Google's id tokens leave that out (OpenID
    Connect Core 1.0 section 15.6.2)."""
    return iss.rstrip("/").removeprefix("https://")


def comparable(claim: str, value: str) -> str:
    """The value as it is compared: an email address without regard to case."""
    return value.casefold() if claim == EMAIL else value


def is_expected_account(
    came: str | None,
    claims: Mapping[str, str],
    *,
    pin: str | None,
    expected: Mapping[str, str],
    rule: OnReconnect,
) -> bool:
    """Whether a consent's grant may be installed. All values are keyed hashes; `came` is the account's.

    The pinned account may always come back. Another one, or a reply that names none, may not where the
    rule is `same`; otherwise it must have each claim that the app expects.
    """
    if pin is not None and came == pin:
        return True
    if pin is not None and rule is OnReconnect.SAME:
        return False
    return all(claims.get(name) == value for name, value in expected.items())
