"""AWS KMS: for each purpose a symmetric key, by the name of its alias or by the ARN of it.

    aws-kms:alias/evergrant-{purpose}?region=eu-central-1
    aws-kms:arn:aws:kms:eu-central-1:111122223333:alias/evergrant-{purpose}

boto3 finds the credentials (environment, profile, role of the container or instance), and the region when
neither the ARN nor `region` has it.
"""

import os
import threading
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ParamValidationError,
)

from evergrant_server.crypto.key_services.blocking import BlockingKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    ServicePurpose,
    ServiceUrl,
)

UNUSABLE = "KMSInvalidStateException"  # of a key that is deleted soon, and of one whose key store is away
REASONS = {
    "DependencyTimeoutException": FailureReason.AWAY,
    "KMSInternalException": FailureReason.AWAY,
    "KeyUnavailableException": FailureReason.AWAY,
    "LimitExceededException": FailureReason.AWAY,
    "ThrottlingException": FailureReason.AWAY,  # a 400
    "RequestTimeTooSkewed": FailureReason.DENIED,
    "AccessDenied": FailureReason.DENIED,
    "AccessDeniedException": FailureReason.DENIED,
    "ExpiredTokenException": FailureReason.DENIED,
    "IncompleteSignature": FailureReason.DENIED,
    "InvalidClientTokenId": FailureReason.DENIED,
    "InvalidGrantTokenException": FailureReason.DENIED,
    "InvalidSignatureException": FailureReason.DENIED,
    "MissingAuthenticationToken": FailureReason.DENIED,
    "NotAuthorized": FailureReason.DENIED,
    "OptInRequired": FailureReason.DENIED,
    "SignatureDoesNotMatch": FailureReason.DENIED,
    "UnrecognizedClientException": FailureReason.DENIED,
    "DisabledException": FailureReason.GONE,
    "InvalidArnException": FailureReason.GONE,
    "InvalidKeyUsageException": FailureReason.GONE,
    "NotFoundException": FailureReason.GONE,
    "IncorrectKeyException": FailureReason.BROKEN,
    "InvalidCiphertextException": FailureReason.BROKEN,
}
_AWAY_STATES = ("Creating", "Unavailable", "Updating")  # of a key: the last two are of a custom key store


def open_service(url: ServiceUrl) -> "AwsKmsService":
    return AwsKmsService(url)


class AwsKmsService(BlockingKeyService):
    """One client for the process. Nothing is tried twice here: the caller tries again."""

    def __init__(self, url: ServiceUrl) -> None:
        super().__init__(url)
        region = url.checked("region").get("region")
        arn = url.key.split(":", 5)
        if url.key.startswith("arn:") and len(arn) == 6:
            region = arn[3]
        elif not url.key.startswith("alias/"):
            raise ValueError("it must be aws-kms:alias/NAME or aws-kms:arn:aws:kms:REGION:ACCOUNT:alias/NAME")
        self._region = region
        self._opening = threading.Lock()
        self._opened: Any = None

    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        parameters = {"Plaintext": key, "EncryptionContext": context.fields(purpose)}
        return self._call("encrypt", purpose, **parameters)["CiphertextBlob"]

    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        parameters = {"CiphertextBlob": wrapped, "EncryptionContext": context.fields(purpose)}
        return self._call("decrypt", purpose, **parameters)["Plaintext"]

    def describe_now(self, purpose: ServicePurpose) -> KeyDescription:
        key = self._call("describe_key", purpose)["KeyMetadata"]
        try:
            principal = self._client("sts").get_caller_identity()["Arn"]
        except (BotoCoreError, ClientError):  # a network need not reach it
            principal = None
        name, is_enabled = self.key_name(purpose), key["KeyState"] == "Enabled"
        in_hardware = key.get("Origin") != "EXTERNAL_KEY_STORE"
        return KeyDescription(name, key["Arn"], is_enabled, in_hardware, principal)

    def close_now(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        match error:
            case ParamValidationError():
                return FailureReason.BROKEN if opens else FailureReason.GONE
            case BotoCoreError():  # also for credentials that aren't to be had
                return FailureReason.AWAY
            case ClientError():
                code = error.response["Error"]["Code"]
                if code == "ValidationException":
                    return FailureReason.BROKEN if opens else FailureReason.GONE
                is_refusal = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (401, 403)
                return REASONS.get(code, FailureReason.DENIED if is_refusal else FailureReason.AWAY)
        return None

    def words_of(self, error: Exception) -> str:
        """AWS' words, which name the principal that it refuses; of other errors the kind alone."""
        if not isinstance(error, ClientError):
            return type(error).__name__
        answer = error.response["Error"]
        return f"{answer['Code']} {answer.get('Message', '')}"

    def _call(self, operation: str, purpose: ServicePurpose, **parameters: Any) -> dict[str, Any]:
        """Raises what the client raises, and for a key in no usable state an error that says which."""
        if self._opened is None:
            with self._opening:
                self._opened = self._opened or self._client("kms")
        name = self._url.of(purpose)
        try:
            return getattr(self._opened, operation)(KeyId=name, **parameters)
        except ClientError as error:
            if error.response["Error"]["Code"] != UNUSABLE or operation == "describe_key":
                raise
            state = self._opened.describe_key(KeyId=name)["KeyMetadata"]["KeyState"]
            code = "KeyUnavailableException" if state in _AWAY_STATES else "DisabledException"
            raise ClientError(
                {"Error": {"Code": code, "Message": f"its state is {state}"}}, operation
            ) from None

    def _client(self, service: str) -> Any:
        limits = {"connect_timeout": self._url.limit_s / 2, "read_timeout": self._url.limit_s}
        config = Config(**limits, retries={"total_max_attempts": 1})
        region = self._region or os.environ.get("AWS_REGION")  # which boto3 doesn't read
        return boto3.Session().client(service, region_name=region, config=config)
