"""Azure Key Vault and Managed HSM: for each purpose an RSA key of 2,048 bits or more.

    azure:https://NAME.vault.azure.net/keys/evergrant-{purpose}

The wrapped key is `version of the key, slash, RSA-OAEP-256`: Azure itself names no version in what it wraps.
azure-identity finds the credentials (environment, workload identity, managed identity).
"""

import re
import threading
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError, HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

from evergrant_server.crypto.key_services.blocking import BlockingKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
    ServiceUrl,
)

_ALGORITHM = KeyWrapAlgorithm.rsa_oaep_256
_VERSION = re.compile(r"[0-9a-f]{32}\Z")
_DEVELOPERS = ("cli", "developer_cli", "powershell", "shared_token_cache", "visual_studio_code", "broker")
_AWAY = (408, 429)  # and every 5xx


def open_service(url: ServiceUrl) -> "AzureService":
    return AzureService(url)


class AzureService(BlockingKeyService):
    """Wraps with the public key that the vault gave just now; only the vault unwraps."""

    def __init__(self, url: ServiceUrl) -> None:
        super().__init__(url)
        url.checked()
        parts = urlsplit(url.key)
        folder, _, self._key = parts.path.strip("/").partition("/")
        if parts.scheme != "https" or parts.hostname is None or folder != "keys" or "/" in self._key:
            raise ValueError("it must be azure:https://NAME.vault.azure.net/keys/evergrant-{purpose}")
        self._vault = f"https://{parts.netloc}"
        self._once = {
            "retry_total": 0,  # the caller tries again
            "connection_timeout": url.limit_s / 2,
            "read_timeout": url.limit_s,
        }
        self._opening = threading.Lock()
        self._opened: KeyClient | None = None
        self._credential: Any = None

    def key_name(self, purpose: ServicePurpose) -> str:
        return f"azure:keys/{self._name(purpose)}"

    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        vault_key = self._client().get_key(self._name(purpose))
        if vault_key.properties.enabled is False:  # the client would wrap all the same
            raise self._failure(purpose, FailureReason.GONE, "is disabled")
        version = vault_key.properties.version or ""
        with CryptographyClient(vault_key, self._credential, **self._once) as client:
            return f"{version}/".encode() + client.wrap_key(_ALGORITHM, key).encrypted_key

    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        version, _, encrypted = wrapped.partition(b"/")
        name = version.decode(errors="replace")
        if not _VERSION.match(name):
            raise self._failure(purpose, FailureReason.BROKEN, "didn't wrap this value, or it was altered")
        self._client()
        key_id = f"{self._vault}/keys/{self._name(purpose)}/{name}"
        with CryptographyClient(key_id, self._credential, **self._once) as client:
            return client.unwrap_key(_ALGORITHM, encrypted).key

    def describe_now(self, purpose: ServicePurpose) -> KeyDescription:
        key = self._client().get_key(self._name(purpose))
        in_hardware = str(key.key_type).upper().endswith("HSM")
        name, properties = self.key_name(purpose), key.properties
        return KeyDescription(name, properties.version, properties.enabled is not False, in_hardware)

    def close_now(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._credential.close()

    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        match error:
            case HttpResponseError(status_code=403):
                return FailureReason.GONE if "KeyDisabled" in _code(error) else FailureReason.DENIED
            case HttpResponseError(status_code=401):
                return FailureReason.DENIED
            case HttpResponseError(status_code=400):
                return FailureReason.BROKEN if opens else FailureReason.GONE
            case HttpResponseError(status_code=int(status)) if status < 500 and status not in _AWAY:
                return FailureReason.GONE  # 404; 409 while it is being deleted
            case AzureError():  # also for a credential that isn't to be had
                return FailureReason.AWAY
            case ValueError():  # of the client, for a key outside its dates
                return FailureReason.GONE
        return None

    def words_of(self, error: Exception) -> str:
        """Azure's words; of an error of the connection only its kind, as its text has addresses."""
        if isinstance(error, HttpResponseError) and error.error is not None:
            return f"{error.error.code} {error.error.message}"
        return type(error).__name__

    def _name(self, purpose: ServicePurpose) -> str:
        return self._key.replace("{purpose}", purpose.value)

    def _failure(self, purpose: ServicePurpose, reason: FailureReason, why: str) -> KeyServiceFailure:
        return KeyServiceFailure(reason, self.key_name(purpose), why)

    def _client(self) -> KeyClient:
        with self._opening:
            if self._opened is None:
                excluded = {f"exclude_{name}_credential": True for name in _DEVELOPERS}
                self._credential = DefaultAzureCredential(**excluded)
                self._opened = KeyClient(self._vault, self._credential, **self._once)
            return self._opened


def _code(error: HttpResponseError) -> str:
    """The code of a refusal with the one inside it, such as `Forbidden KeyDisabled`."""
    if error.error is None:
        return ""
    return f"{error.error.code} {(error.error.innererror or {}).get('code', '')}"
