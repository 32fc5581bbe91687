"""How key services fail: the conformance suite carries each act out, and a table of the docs lists them.

An act is one way of failing, for the length of a block. Most are the service's own: its admin calls its API,
or its server is stopped. A scripted one is a reply that we wrote after the service's documentation.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evergrant_server.crypto.key_services.port import FailureReason


class Case(StrEnum):
    """What a key service does instead of helping; in the table's order."""

    AWAY = "the service is away"
    BLOCKED = "a call is never answered"
    DENIED = "the principal may not use the key"
    DISABLED = "the key is disabled"
    GONE = "the key doesn't exist"
    DELETION = "the key waits for its deletion"


REASONS = {
    Case.AWAY: FailureReason.AWAY,
    Case.BLOCKED: FailureReason.AWAY,
    Case.DENIED: FailureReason.DENIED,
    Case.DISABLED: FailureReason.GONE,
    Case.GONE: FailureReason.GONE,
    Case.DELETION: FailureReason.GONE,
}


@dataclass(frozen=True)
class Act:
    """`method` of the backend's world is called with the purpose and `arguments`, and is over with its block.

    `loses`: what was wrapped before doesn't open again afterwards. `is_at_start`: a process that runs already
    doesn't notice. `still_wraps`: it fails only to open what was wrapped before.
    """

    case: Case
    title: str
    method: str
    arguments: tuple[Any, ...] = ()
    is_scripted: bool = False
    loses: bool = False
    is_at_start: bool = False
    still_wraps: bool = False

    def __str__(self) -> str:
        return f"{self.case.name.lower()}: {self.title}"


@dataclass(frozen=True)
class Backend:
    """A column of the table: what the suite ran against, its acts, and why it can't have the other cases."""

    title: str
    world: str  # `module.Class` below this package; imported with its library when a test needs it
    against: str
    acts: tuple[Act, ...]
    without: tuple[tuple[Case, str], ...] = ()


def _scripted(case: Case, method: str, *titles: str) -> tuple[Act, ...]:
    return tuple(Act(case, title, method, (title,), is_scripted=True) for title in titles)


_SILENCE = Act(Case.BLOCKED, "silence", "silent")
FILE = Backend(
    "key file",
    "key_file.KeyFileWorld",
    "a file",
    (
        Act(Case.AWAY, "no file", "missing"),
        Act(Case.DENIED, "a file for a role without the purpose", "exported"),
        Act(Case.GONE, "another installation's file", "other_file", still_wraps=True),
    ),
    (
        (Case.BLOCKED, "it lies on the disk"),
        (Case.DISABLED, "no such state"),
        (Case.DELETION, "no such state"),
    ),
)
AWS = Backend(
    "AWS KMS",
    "aws.AwsWorld",
    "boto3, moto's server",
    (
        Act(Case.AWAY, "connection closed", "closed"),
        *_scripted(Case.AWAY, "refusing", "DependencyTimeoutException", "KMSInternalException"),
        *_scripted(Case.AWAY, "refusing", "KeyUnavailableException", "ThrottlingException"),
        *_scripted(Case.AWAY, "failing", "500", "503"),
        *_scripted(Case.AWAY, "in_state", "Unavailable"),
        _SILENCE,
        Act(Case.DENIED, "no policy", "without_policy"),
        *_scripted(Case.DENIED, "refusing", "ExpiredTokenException", "UnrecognizedClientException"),
        *_scripted(Case.DISABLED, "refusing", "DisabledException"),
        Act(Case.GONE, "no alias", "without_alias"),
        *_scripted(Case.DELETION, "in_state", "PendingDeletion"),
    ),
)
OPENBAO = Backend(
    "Vault, OpenBao",
    "openbao.OpenBaoWorld",
    "hvac, OpenBao",
    (
        Act(Case.AWAY, "connection closed", "closed"),
        Act(Case.AWAY, "sealed", "sealed"),
        Act(Case.AWAY, "rate limit", "limited"),
        Act(Case.AWAY, "no file with the token", "without_token"),
        *_scripted(Case.AWAY, "failing", "412", "429", "472", "500", "501", "502", "503", "504"),
        *_scripted(Case.AWAY, "nonsense", "a page in place of JSON"),
        _SILENCE,
        Act(Case.DENIED, "policy without the key", "without_policy"),
        Act(Case.DENIED, "unknown token", "with_other_token"),
        Act(Case.DISABLED, "soft-deleted", "soft_deleted"),
        Act(Case.DISABLED, "version too old", "too_old", still_wraps=True),
        Act(Case.GONE, "deleted", "deleted", loses=True),
        Act(Case.GONE, "no engine", "without_engine", loses=True),
    ),
    ((Case.DELETION, "transit deletes at once"),),
)
PKCS11 = Backend(
    "PKCS#11",
    "softhsm.SoftHsmWorld",
    "python-pkcs11, SoftHSM",
    (
        Act(Case.AWAY, "no token", "without_token"),
        Act(Case.AWAY, "no file with the PIN", "without_pin", is_at_start=True),
        Act(Case.BLOCKED, "locked files", "locked"),
        Act(Case.DENIED, "wrong PIN", "with_wrong_pin", is_at_start=True),
        Act(Case.GONE, "deleted", "deleted", loses=True),
    ),
    ((Case.DISABLED, "no such state"), (Case.DELETION, "no such state")),
)
GCP = Backend(
    "Google Cloud KMS",
    "gcp.GcpWorld",
    "google-cloud-kms, scripted server",
    (
        Act(Case.AWAY, "connection closed", "closed"),
        *_scripted(Case.AWAY, "failing", "429", "500", "502", "503", "504"),
        _SILENCE,
        *_scripted(Case.DENIED, "failing", "403", "401"),
        *_scripted(Case.DISABLED, "in_state", "DISABLED"),
        *_scripted(Case.GONE, "failing", "404"),
        *_scripted(Case.GONE, "in_state", "DESTROYED"),
        *_scripted(Case.DELETION, "in_state", "DESTROY_SCHEDULED"),
    ),
)
AZURE = Backend(
    "Azure Key Vault",
    "azure.AzureWorld",
    "azure-keyvault-keys, azure-identity, scripted server",
    (
        Act(Case.AWAY, "connection closed", "closed"),
        *_scripted(Case.AWAY, "failing", "408", "429", "500", "503", "504"),
        Act(Case.AWAY, "no token", "without_token", is_scripted=True, is_at_start=True),
        _SILENCE,
        *_scripted(Case.DENIED, "failing", "403", "401"),
        *_scripted(Case.DISABLED, "disabled", "KeyDisabled"),
        *_scripted(Case.GONE, "failing", "404"),
        *_scripted(Case.DELETION, "failing", "409"),
    ),
)
BACKENDS = (FILE, AWS, OPENBAO, PKCS11, GCP, AZURE)
