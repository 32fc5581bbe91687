"""A provider's declared rotation, grace and token ages. The resend rule is in `core.single_use.attempt`."""

from datetime import timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Rotation(StrEnum):
    """What a provider does with a refresh token when it is used."""

    NONE = "none"  # it stays valid
    GRACE = "grace"  # a new one is issued; the old one is valid for `grace_s` more seconds
    STRICT = "strict"  # a second use is refused, and may revoke the whole token family
    UNKNOWN = "unknown"  # not known: treated as strict


class RefreshRules(BaseModel):
    """How an integration's tokens age. Seconds; None means the provider has no such limit."""

    model_config = ConfigDict(frozen=True)

    rotation: Rotation = Rotation.UNKNOWN
    grace_s: float = 0
    refresh_token_idle_s: float | None = None
    margin_s: float | None = None  # refreshes this long before the expiry, and is refused any earlier
    min_age_s: float | None = None  # a token younger than this is not refreshed

    @property
    def resend_is_safe_for(self) -> timedelta | None:
        """How long after a send of unknown outcome the same token may be sent again; None: never."""
        if self.rotation is Rotation.NONE:
            return timedelta.max
        if self.rotation is Rotation.GRACE and self.grace_s > 0:
            return timedelta(seconds=self.grace_s)
        return None
