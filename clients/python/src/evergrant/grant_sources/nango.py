"""Nango: rows of its table `_nango_connections`, or the responses of `GET /connections/{id}`.

A row's `credentials` are encrypted when Nango runs with NANGO_ENCRYPTION_KEY (32 bytes in base64):
AES-256-GCM over their JSON, with `credentials_iv` and `credentials_tag` beside them. The command opens them
with that key; the key isn't sent.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

from evergrant.errors import BadRequest
from evergrant.grant_files import key_error, read_key_text
from evergrant.grant_sources.items import (
    Item,
    Names,
    RefusedRow,
    Row,
    SkippedRow,
    expiry,
    field,
    item_of,
    members,
    scopes,
)

_KIND = re.compile(r"[A-Z0-9_]{1,30}\Z")
_CLIENT_GRANT = "OAUTH2_CC"


class NangoKey:
    """NANGO_ENCRYPTION_KEY, from a file. Needs the extra `sealed`."""

    def __init__(self, path: Path) -> None:
        """Raises BadRequest for a file without such a key."""
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            how = "Install it: pip install 'evergrant[sealed]'."
            raise BadRequest("encrypted rows need cryptography", code="extra_missing", repair=how) from None
        raw = _base64(read_key_text(path).strip())
        if raw is None or len(raw) != 32:
            how = "Give the file with NANGO_ENCRYPTION_KEY."
            raise key_error(path, "it is no 32 bytes in base64", repair=how)
        self._cipher = AESGCM(raw)

    def open(self, sealed: str, iv: str, tag: str) -> object:
        """The credentials. Raises RefusedRow."""
        parts = [_base64(part) for part in (iv, sealed, tag)]
        try:
            nonce, text, mac = (cast(bytes, part) for part in parts)
            return json.loads(self._cipher.decrypt(nonce, text + mac, None))
        except Exception:  # cryptography's and json's are many, and json's quotes the text
            why = "its credentials were encrypted with another key, or altered"
        raise RefusedRow("not_for_this_key", why)


class Nango:
    mapping: ClassVar[Mapping[str, str]] = {
        "integration": "provider_config_key",
        "subject": "connection_id",
        "scopes": "credentials.raw.scope, or connection_config.oauth_scopes, or the integration's",
        "expiry": "credentials.expires_at; without it unknown, and refreshed before the first lease",
    }

    def __init__(self, names: Names, key: NangoKey | None = None) -> None:
        self._names = names
        self._key = key
        self._environment: object = None  # of the first row

    def items(self, row: Row) -> Sequence[Item]:
        if row.get("deleted") or row.get("deleted_at"):
            raise SkippedRow("deleted in Nango")
        credentials = self._credentials(row)
        self._require_one_environment(row)
        _require_own_grant(credentials)
        return [
            item_of(
                integration=self._names.integration(row.get("provider_config_key")),
                subject=self._names.subject_of(row, "connection_id"),
                access_token=credentials.get("access_token"),
                refresh_token=credentials.get("refresh_token"),
                scopes=scopes(field(credentials, "raw.scope"))
                or scopes(field(row, "connection_config.oauth_scopes")),
                **expiry(credentials.get("expires_at")),
            )
        ]

    def _credentials(self, row: Row) -> Row:
        credentials = members(row.get("credentials"), "credentials")
        sealed = credentials.get("encrypted_credentials")
        if sealed is not None:
            if self._key is None:
                raise RefusedRow("sealed", "it is encrypted: give a file with NANGO_ENCRYPTION_KEY as --key")
            parts = (str(part) for part in (sealed, row.get("credentials_iv"), row.get("credentials_tag")))
            credentials = members(self._key.open(*parts), "credentials")
        if not credentials:
            why = "it has no credentials: Nango's key needs environment:connections:read_credentials"
            raise RefusedRow("no_credentials", why)
        return credentials

    def _require_one_environment(self, row: Row) -> None:
        """The same names stand in each environment, and only the first one's grant would be imported."""
        environment = row.get("environment_id")
        if self._environment is None:
            self._environment = environment
        if environment != self._environment:
            why = "the file began with another environment_id: export one environment at a time"
            raise RefusedRow("other_environment", why)


def _require_own_grant(credentials: Row) -> None:
    """Raise SkippedRow for what is no grant, RefusedRow for one of another client."""
    kind = credentials.get("type")
    if kind == _CLIENT_GRANT:
        raise SkippedRow("client credentials: connect with --flow client_credentials instead")
    if kind != "OAUTH2":
        named = kind if isinstance(kind, str) and _KIND.match(kind) else "of no known type"
        raise SkippedRow(f"not OAuth 2 ({named})")
    if field(credentials, "config_override.client_id"):
        why = "it belongs to an OAuth client of its own: import it into an integration with that client"
        raise RefusedRow("other_client", why)
    if not credentials.get("access_token"):
        raise RefusedRow("no_access_token", "it has no access token")


def _base64(text: str) -> bytes | None:
    """As Node reads it: either alphabet, with or without padding."""
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
