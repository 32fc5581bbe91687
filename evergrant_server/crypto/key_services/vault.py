"""HashiCorp Vault and OpenBao: for each purpose a key of a transit engine, of type aes256-gcm96.

    vault:https://vault.example:8200/transit/evergrant-{purpose}?token-file=/run/secrets/vault-token

The token is read from its file with every call, as an agent renews it there. Without `token-file` hvac looks
for one (VAULT_TOKEN, ~/.vault-token).
"""

import base64
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hvac
from hvac import exceptions as errors

from evergrant_server.crypto.key_services.blocking import BlockingKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
    ServiceUrl,
    require_tls,
)

# of a 400, in which Vault says in words alone what is wrong
_NO_KEY = ("key not found", "too old", "soft-deleted", "does not support", "not supported")


def open_service(url: ServiceUrl) -> "VaultService":
    return VaultService(url)


class VaultService(BlockingKeyService):
    """Each call has a client of its own: calls are rare, and a connection that was kept may be dead."""

    def __init__(self, url: ServiceUrl) -> None:
        super().__init__(url)
        options = url.checked("token-file", "namespace")
        parts = urlsplit(url.key)
        self._mount, _, self._key = parts.path.strip("/").rpartition("/")
        if parts.hostname is None or not self._mount or parts.username is not None:
            raise ValueError(
                "it must be vault:https://HOST:PORT/MOUNT/KEY, such as …/transit/evergrant-{purpose}"
            )
        require_tls(url.key)
        self._address = f"{parts.scheme}://{parts.netloc}"
        self._namespace = options.get("namespace")
        self._token_file = Path(options["token-file"]) if "token-file" in options else None

    def key_name(self, purpose: ServicePurpose) -> str:
        return f"vault:{self._mount}/{self._name(purpose)}"

    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        with self._client(purpose) as client:
            try:
                reply = client.secrets.transit.encrypt_data(
                    name=self._name(purpose),
                    plaintext=_text(key),
                    associated_data=_text(context.encoded(purpose)),
                    mount_point=self._mount,
                )
            except (
                errors.Forbidden
            ):  # also for a key that doesn't exist, which no principal may create: then 404 here
                client.secrets.transit.read_key(name=self._name(purpose), mount_point=self._mount)
                raise
        return reply["data"]["ciphertext"].encode()

    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        with self._client(purpose) as client:
            reply = client.secrets.transit.decrypt_data(
                name=self._name(purpose),
                ciphertext=wrapped.decode("ascii", errors="replace"),
                associated_data=_text(context.encoded(purpose)),
                mount_point=self._mount,
            )
        return base64.b64decode(reply["data"]["plaintext"], validate=True)

    def describe_now(self, purpose: ServicePurpose) -> KeyDescription:
        with self._client(purpose) as client:
            key = client.secrets.transit.read_key(name=self._name(purpose), mount_point=self._mount)["data"]
            try:
                principal = client.auth.token.lookup_self()["data"]["display_name"]
            except errors.Forbidden:  # a policy need not allow it
                principal = None
        usable = key["supports_encryption"] and key["supports_decryption"] and not key.get("soft_deleted")
        return KeyDescription(self.key_name(purpose), str(key["latest_version"]), usable, principal=principal)

    def close_now(self) -> None:
        """Nothing is open between two calls."""

    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        match error:
            case errors.Forbidden() | errors.Unauthorized():
                return FailureReason.DENIED
            case errors.InvalidPath():
                return FailureReason.GONE
            case errors.InvalidRequest():
                is_broken = opens and not any(words in str(error) for words in _NO_KEY)
                return FailureReason.BROKEN if is_broken else FailureReason.GONE
            case errors.VaultError() | OSError():  # those of requests are OSErrors
                return FailureReason.AWAY
        return None

    def words_of(self, error: Exception) -> str:
        """Vault's words; of an error of the connection only its kind, as its text has the host's address."""
        return str(error.args[0]) if isinstance(error, errors.VaultError) else type(error).__name__

    def _name(self, purpose: ServicePurpose) -> str:
        return self._key.replace("{purpose}", purpose.value)

    @contextmanager
    def _client(self, purpose: ServicePurpose) -> Generator[hvac.Client]:
        token = None
        if self._token_file is not None:
            try:
                token = self._token_file.read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                why = f"isn't to be had now: the token's file {self._token_file} can't be read"
                raise KeyServiceFailure(FailureReason.AWAY, self.key_name(purpose), why) from None
        limit: Any = self._url.limit_s  # requests takes parts of a second, hvac's annotation doesn't
        client = hvac.Client(self._address, token=token, namespace=self._namespace, timeout=limit)
        try:
            yield client
        finally:
            client.adapter.close()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
