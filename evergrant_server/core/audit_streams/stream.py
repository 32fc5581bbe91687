"""A stream of the audit log: where it goes, as what, and why a batch wasn't taken. Pure."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from evergrant_server.core.ids import StreamId, TenantRow

INSTALLATION_STREAM = StreamId("stm_installation")  # that the operator's settings make: of every tenant


class StreamFormat(StrEnum):
    """What a receiver is sent."""

    CLOUDEVENTS = "cloudevents"  # CloudEvents 1.0, a batch in structured mode
    OCSF = "ocsf"  # OCSF 1.8, a JSON array of events
    OTLP = "otlp"  # OpenTelemetry logs, protobuf over HTTP


class StreamBegin(StrEnum):
    """Where a new stream begins."""

    NOW = "now"
    OLDEST = "oldest"


class StreamProblem(StrEnum):
    """Why a batch wasn't taken. The receiver's reply is not kept."""

    REFUSED = "refused"  # a status outside 2xx
    REDIRECTED = "redirected"  # a redirect is not followed: its target was never checked
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    UNREADABLE = "unreadable"  # an endless reply, or one that isn't HTTP
    EGRESS_REFUSED = "egress_refused"  # the address is not one we connect to
    UNUSABLE = "unusable"  # its row isn't Evergrant's, or its secrets can't be opened


class AuditStream(TenantRow):
    """A receiver of a tenant's audit records. Signing secret and headers stay in the store."""

    id: StreamId
    name: str
    url: str = Field(repr=False)  # read from the store: `core.webhooks.masked_url`
    format: StreamFormat
    header_names: tuple[str, ...] = ()  # of what is sent beside the signature
    disabled: bool = False
    secret_changed_at: datetime
    created_at: datetime
    changed_at: datetime
