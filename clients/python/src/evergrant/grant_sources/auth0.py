"""Auth0: users with their identities, as the Management API gives them (`GET /api/v2/users`, `…/{id}`).

An identity has `connection`, `provider`, `user_id`, `isSocial` and, for a key with `read:user_idp_tokens`,
the provider's `access_token` and `refresh_token`. Nothing dates the access token, so its expiry is unknown.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from evergrant.grant_sources.items import Item, Names, RefusedRow, Row, SkippedRow, item_of, members, scopes


class Auth0:
    mapping: ClassVar[Mapping[str, str]] = {
        "integration": "identities[].connection",
        "subject": "user_id",
        "scopes": "the integration's: an identity names none",
        "expiry": "unknown: refreshed before the first lease, so an identity needs a refresh_token",
    }

    def __init__(self, names: Names) -> None:
        self._names = names

    def items(self, row: Row) -> Sequence[Item | SkippedRow | RefusedRow]:
        identities = row.get("identities")
        if not isinstance(identities, list):
            raise RefusedRow("wrong_shape", "it is no user with identities")
        return [self._item_or_reason(row, identity) for identity in cast(list[object], identities)]

    def _item_or_reason(self, row: Row, value: object) -> Item | SkippedRow | RefusedRow:
        try:
            return self._item(row, members(value, "identity"))
        except (SkippedRow, RefusedRow) as reason:
            return reason

    def _item(self, row: Row, identity: Row) -> Item:
        if reason := _why_not(identity):
            raise SkippedRow(reason)
        return item_of(
            integration=self._names.integration(identity.get("connection")),
            subject=self._names.subject_of(row, "user_id"),
            access_token=identity.get("access_token"),
            refresh_token=identity.get("refresh_token"),
            scopes=scopes(identity.get("scope")),
            expires="unknown",
        )


def _why_not(identity: Row) -> str:
    """Why the identity makes no item; empty if it makes one."""
    if identity.get("access_token_secret"):
        return "OAuth 1.0a: connect anew"
    if not identity.get("access_token"):
        return "no tokens: a password login, or a key without read:user_idp_tokens, or Token Vault has them"
    if not identity.get("refresh_token"):
        return "no refresh token: the login requested no offline access"
    return ""
