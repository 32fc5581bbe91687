"""What crosses Temporal for recurring workflows, and for deliveries to webhooks. No secrets, no URL."""

from datetime import datetime

from evergrant_server.core.ids import Tenant, TrustedIssuerId, WebhookId
from evergrant_server.core.messages.base import Message, Received, RequestContext, RequestMessage


class AuditCheckpoint(Message):
    """A record that the store had in its audit log, and `note`, the newest signed checkpoint of the log.

    A store that lacks one of them came from an older backup, or its log was written anew.
    """

    tenant: Tenant
    shard: str = "main"  # of the hash chain of before the trees
    seq: int
    hash: str
    note: str | None = None


class ReconcileResult(Message):
    """Counts, and the first ids that the operator has to look at. The next run goes on from here.

    A long pass is several runs; the counts are the pass's.
    """

    live: int = 0  # that were looked at
    started: int = 0
    behind: int = 0  # the workflow knows a newer generation than the store
    first_behind: tuple[str, ...] = ()
    unanswered: int = 0  # no answer came, so it is open whether the store is behind them
    first_unanswered: tuple[str, ...] = ()
    unreadable: int = 0  # rows that can't be read, so that their connections were skipped
    first_unreadable: tuple[str, ...] = ()
    compared: bool = True  # False: no worker answered, so the rest was left out
    comparing: bool = False  # every workflow is queried for its generation, from the first to the last
    after: str | None = None  # the last connection that was looked at, while the pass goes on
    walked_to: str | None = None  # the last one of a share: the next pass looks at those behind it
    spent_s: float = 0  # by this run, while it goes on; earlier tries included
    exported: int = 0  # histories of closed runs whose export was missing
    audit_checkpoint: AuditCheckpoint | None = None
    closed_since: datetime | None = None


class ReconcileRequest(Received):
    """Find live connections without a workflow. The schedule sends it empty."""

    audit_checkpoint: AuditCheckpoint | None = None  # what the store had at the end of the last pass
    closed_since: datetime | None = None  # runs that closed before it are exported already
    compare: bool = False  # ask every workflow for its generation, even if `audit_checkpoint` is found
    so_far: ReconcileResult | None = None  # of a pass that isn't at its end: go on from there
    walked_to: str | None = None  # the last connection of the share that the last pass looked at

    def following(self, last: ReconcileResult) -> "ReconcileRequest":
        """The request of a run that goes on where the last one ended."""
        return self.__replace__(
            audit_checkpoint=last.audit_checkpoint,
            closed_since=last.closed_since,
            so_far=None if last.after is None else last,
            walked_to=last.walked_to,
        )


class RereadMetadata(Received):
    """Compare discovered metadata that was last read longer ago than this."""

    older_than_s: float = 86_400


class RereadMetadataResult(Message):
    read: int
    changed: int
    refused: int  # it would have weakened what is pinned


class IntrospectGrants(Received):
    """Ask providers that support introspection whether grants are still active (RFC 7662)."""


class IntrospectGrantsResult(Message):
    checked: int = 0
    ended: int = 0
    refresh_requested: int = 0  # the workflow refreshes, and so finds out
    failed: int = 0


class FetchIssuerKeys(RequestMessage):
    """Read the public keys of a trusted issuer of workload tokens."""

    tenant: Tenant
    issuer_id: TrustedIssuerId


class IssuerKeysResult(Message):
    keys: int = 0
    problem: str | None = None


class WebhookStart(Received):
    """The input of the run that delivers to one webhook. What is delivered, and where, is in the store."""

    tenant: Tenant
    webhook_id: WebhookId


class WakeWebhook(WebhookStart):
    """A delivery waits. `at_once`: an admin wants it, even during a pause."""

    at_once: bool = False
    context: RequestContext


class DeliverWebhooks(WebhookStart):
    """Send what is due, a bounded number of it."""


class DeliveryRound(Message):
    """The result of a round. `next_at` None: no delivery waits; `paused`: none is sent until then."""

    delivered: int = 0
    failed: int = 0
    next_at: datetime | None = None
    paused: bool = False
    wait_s: float | None = None  # until `next_at`, by the clock that it is from: Temporal's is another
