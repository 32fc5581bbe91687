"""What is noticed of uses that are unlike those before, and from which number on."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from evergrant_server.core.model import CheckedModel
from evergrant_server.core.questions.detection import DetectionRules
from evergrant_server.settings.types import Duration, read_duration

_DurationOrNone = Annotated[timedelta, BeforeValidator(read_duration), Field(ge=timedelta(0))]


class DetectionSettings(CheckedModel):
    """Thresholds of alarms: each is an audit record, an event for webhooks, and counted."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    bulk_read_alarm: int = Field(default=1000, ge=0)
    """How many connections an app leases within an hour from one API process when `tokens.bulk_read` is
    recorded, sent to webhooks, logged and counted. 0 switches it off for leases; an export always does it."""
    unused_permit_after: Duration = timedelta(days=90)
    """How long a permit may go unused until its removal is proposed to the tenant's
    admins (`/v1/access-requests`)."""
    detect_interval: Duration = timedelta(minutes=5)
    """How often a worker looks at the audit records that came since it last did, for what the next settings
    say. What it notices is listed by `GET /v1/detections`."""
    detect_bulk_factor: float = Field(default=5, ge=0)
    """An app that leases this many times more connections within an hour than ever in an hour of the last 30
    days on which it was used is noticed (`bulk_reads`), once it was used on three days. 0: not at all."""
    detect_bulk_least: int = Field(default=50, ge=0)
    """It is noticed from this many connections on, however few its usual is."""
    detect_silence: _DurationOrNone = timedelta(days=90)
    """After how long without a lease the next one of an app, or of a connection, is noticed
    (`after_silence`). 0: not at all."""
    detect_refusals: int = Field(default=100, ge=0)
    """How many leases of one app are refused on a day (UTC) until that is noticed (`repeated_refusals`). 0:
    not at all."""
    detect_unconfirmed: int = Field(default=5, ge=0)
    """How many consents that an app began stay unconfirmed on a day until that is noticed
    (`unconfirmed_consents`). 0: not at all."""
    detect_new_networks: bool = True
    """Whether a call of an app from a network that it has not called from before is noticed (`new_network`),
    once it has called for a week. A network is 256 addresses of IPv4, or 48 bits of IPv6; private ones are
    one. Behind a proxy set EVERGRANT_TRUSTED_PROXIES."""
    detect_again_after: Duration = timedelta(days=1)
    """How long the same is not noticed again about the same app or connection."""

    @property
    def detection_rules(self) -> DetectionRules:
        return DetectionRules(
            bulk_factor=self.detect_bulk_factor,
            bulk_least=self.detect_bulk_least,
            silence=self.detect_silence,
            refusals=self.detect_refusals,
            unconfirmed=self.detect_unconfirmed,
            new_networks=self.detect_new_networks,
            again_after=self.detect_again_after,
        )
