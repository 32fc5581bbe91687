"""Google Cloud KMS: for each purpose a symmetric key (ENCRYPT_DECRYPT).

    gcp-kms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/evergrant-{purpose}

`?endpoint=https://…` is for a private endpoint of the service.
Google's library finds the credentials (GOOGLE_APPLICATION_CREDENTIALS, the metadata server). No checksums are
sent: a key that was altered on its way is found out when the value that it seals doesn't open.
"""

import re
import threading
from typing import Any

import google.auth
from google.api_core import exceptions as errors
from google.auth import exceptions as auth_errors
from google.cloud import kms_v1

from evergrant_server.crypto.key_services.blocking import BlockingKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    ServicePurpose,
    ServiceUrl,
    require_tls,
)

_NAME = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+\Z")
_SCOPES = ("https://www.googleapis.com/auth/cloudkms",)
_IN_HARDWARE = (kms_v1.ProtectionLevel.HSM, kms_v1.ProtectionLevel.HSM_SINGLE_TENANT)


def open_service(url: ServiceUrl) -> "GcpKmsService":
    return GcpKmsService(url)


class GcpKmsService(BlockingKeyService):
    """One client for the process, over HTTP/1.1."""

    def __init__(self, url: ServiceUrl) -> None:
        super().__init__(url)
        self._endpoint = url.checked("endpoint").get("endpoint")
        if self._endpoint is not None:
            require_tls(self._endpoint)
        if not _NAME.match(url.key):
            raise ValueError(
                "it must be gcp-kms:projects/…/locations/…/keyRings/…/cryptoKeys/evergrant-{purpose}"
            )
        self._once: Any = {"timeout": url.limit_s, "retry": None}  # the caller tries again
        self._opening = threading.Lock()
        self._opened: kms_v1.KeyManagementServiceClient | None = None
        self._credentials: Any = None

    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        request = {"plaintext": key, "additional_authenticated_data": context.encoded(purpose)}
        return self._client().encrypt({"name": self._url.of(purpose), **request}, **self._once).ciphertext

    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        request = {"ciphertext": wrapped, "additional_authenticated_data": context.encoded(purpose)}
        return self._client().decrypt({"name": self._url.of(purpose), **request}, **self._once).plaintext

    def describe_now(self, purpose: ServicePurpose) -> KeyDescription:
        client = self._client()
        version = client.get_crypto_key({"name": self._url.of(purpose)}, **self._once).primary
        return KeyDescription(
            self.key_name(purpose),
            version.name.rpartition("/")[2] or None,
            version.state == kms_v1.CryptoKeyVersion.CryptoKeyVersionState.ENABLED,
            version.protection_level in _IN_HARDWARE,
            getattr(self._credentials, "service_account_email", None),
        )

    def close_now(self) -> None:
        if self._opened is not None:
            self._opened.transport.close()

    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        match error:
            case errors.Forbidden() | errors.Unauthorized():
                return FailureReason.DENIED
            case auth_errors.RefreshError() if not error.retryable:  # refused by Google, not away
                return FailureReason.DENIED
            case auth_errors.GoogleAuthError():
                return FailureReason.AWAY
            case errors.NotFound():
                return FailureReason.GONE
            case errors.BadRequest():
                is_broken = opens and _status(error) != "FAILED_PRECONDITION"  # a version that isn't enabled
                return FailureReason.BROKEN if is_broken else FailureReason.GONE
            case errors.GoogleAPIError() | OSError():  # those of requests are OSErrors
                return FailureReason.AWAY
        return None

    def words_of(self, error: Exception) -> str:
        """Google's words; of an error of the connection only its kind, as its text has addresses."""
        return error.message if isinstance(error, errors.GoogleAPICallError) else type(error).__name__

    def _client(self) -> kms_v1.KeyManagementServiceClient:
        with self._opening:
            if self._opened is None:
                options = {"api_endpoint": self._endpoint} if self._endpoint is not None else None
                self._credentials, _ = google.auth.default(scopes=_SCOPES)
                self._opened = kms_v1.KeyManagementServiceClient(
                    credentials=self._credentials, transport="rest", client_options=options
                )
            return self._opened


def _status(error: errors.BadRequest) -> str:
    """The canonical code, which a 400 has in its body alone."""
    response: Any = error.response
    try:
        return response.json()["error"]["status"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""
