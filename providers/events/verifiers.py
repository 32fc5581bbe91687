"""The table of verifiers."""

from evergrant_server.core.provider_events.receivers import ReceiverKind
from providers.events.base import Verifier
from providers.events.github import verify_github
from providers.events.meta import verify_meta
from providers.events.sets import verify_set
from providers.events.slack import verify_slack
from providers.events.zoom import verify_zoom

VERIFIERS: dict[ReceiverKind, Verifier] = {
    ReceiverKind.SET: verify_set,
    ReceiverKind.SLACK: verify_slack,
    ReceiverKind.GITHUB: verify_github,
    ReceiverKind.ZOOM: verify_zoom,
    ReceiverKind.META: verify_meta,
}


def needs_secret(kind: ReceiverKind) -> bool:
    """Whether events of this kind are signed with a shared secret."""
    return kind is not ReceiverKind.SET
