"""What a connection holds now: scopes and expiry, and the three words valid, due, fresh."""

import json
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.clock import CLOCK_SKEW, add_time
from evergrant_server.core.connections.account import AccountOption
from evergrant_server.core.secret import Secret

MAIN_SLOT = "main"


class Origin(StrEnum):
    """Where a grant's tokens come from, and so whether those of the grant before are still part of it."""

    NEW = "new"  # a consent, an import, a first minting: perhaps of another account, so nothing stays
    REFRESH = "refresh"  # made from the grant before: what the reply leaves out stays (RFC 6749 section 6)


class TokenSet(BaseModel):
    """The secrets and facts of one token reply, on their way from the judge to the store.

    Never a message: its secrets refuse to be serialised. `expires_in` and
    `refresh_expires_in` are seconds from `obtained_at`; None means the provider didn't say.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    access_token: Secret
    token_type: str = "Bearer"
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    expires_in: float | None = None
    refresh_expires_in: float | None = None
    scopes: tuple[str, ...] | None = None  # None: the reply had no scope, so as requested (RFC 6749 5.1)
    metadata: dict[str, Any] = {}
    said_at: datetime | None = None  # by the provider's clock, if the reply had one
    further: dict[str, "TokenSet"] = {}  # chains that came with it, each to be refreshed on its own

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        return Secret(json.dumps(self._plain()))

    def _plain(self) -> dict[str, Any]:
        plain = {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in self
            if value is not None and name not in ("further", "said_at")
        }
        if self.said_at is not None:  # as of every reply of a server that has a clock
            plain["said_at"] = self.said_at.isoformat()
        if self.further:
            plain["further"] = {chain: tokens._plain() for chain, tokens in self.further.items()}
        return plain

    @classmethod
    def from_secret(cls, text: Secret) -> "TokenSet":
        return cls.model_validate(json.loads(text.reveal()))


class Grant(BaseModel):
    """The facts of a grant, without its secrets. Replaced whole, numbered by `generation`."""

    model_config = ConfigDict(frozen=True)

    slot: str = MAIN_SLOT
    generation: int
    token_type: str = "Bearer"
    scopes: tuple[str, ...]
    obtained_at: datetime
    expires_at: datetime | None
    refresh_expires_at: datetime | None = None
    refreshable: bool
    short_lived: bool = False  # the provider gives a long-lived token for it, and that one is what we hold
    metadata: dict[str, Any] = {}
    options: tuple[AccountOption, ...] = ()  # the accounts it reaches, where they were looked up

    @classmethod
    def from_tokens(
        cls,
        tokens: TokenSet,
        *,
        generation: int,
        requested: tuple[str, ...],
        at: datetime,
        before: "Grant | None" = None,
        renewable: bool = False,
        interim: bool = False,
    ) -> "Grant":
        """The facts of a token reply asked for `at`.

        Absent scope means as requested, or as before (RFC 6749 sections 5.1 and 6); absent
        refresh token on a refresh means that the old one stays. `renewable`: new tokens are made
        without a refresh token. What was said of an `interim` token's end says nothing of the next.
        """
        kept = before if before is not None and not before.short_lived else None
        return cls(
            generation=generation,
            token_type=tokens.token_type,
            scopes=tokens.scopes if tokens.scopes is not None else (before.scopes if before else requested),
            obtained_at=at,
            expires_at=_after(at, tokens.expires_in),
            refresh_expires_at=_after(at, tokens.refresh_expires_in)
            or (kept.refresh_expires_at if kept else None),
            refreshable=renewable
            or tokens.refresh_token is not None
            or (kept is not None and kept.refreshable),
            short_lived=interim,
            metadata={**(before.metadata if before else {}), **tokens.metadata},
            options=before.options if before else (),
        )

    @property
    def lifetime(self) -> timedelta | None:
        """How long this provider let the access token live, or None when it never expires."""
        return None if self.expires_at is None else self.expires_at - self.obtained_at

    @property
    def ends_together(self) -> bool:
        """What a refresh is made from is over no later than the access token: it can't wait for that."""
        ends, refresh_ends = self.expires_at, self.refresh_expires_at
        return self.refreshable and ends is not None and refresh_ends is not None and refresh_ends <= ends

    def is_valid(self, now: datetime) -> bool:
        """Not expired."""
        return self.expires_at is None or now < self.expires_at

    def is_due(self, now: datetime, margin: timedelta) -> bool:
        """Inside the refresh margin (the margin is capped, see `margin_of`)."""
        if self.expires_at is None:
            return False
        if self._is_from_the_future(now):
            return True
        return now >= self.expires_at - self.refresh_margin(margin)

    def refresh_margin(self, margin: timedelta) -> timedelta:
        """The margin for this grant: never more than a quarter of the token's lifetime."""
        return margin if self.lifetime is None else min(margin, self.lifetime / 4)

    def is_fresh(self, now: datetime, margin: timedelta, min_ttl: timedelta | None = None) -> bool:
        """Valid for at least `min_ttl`, capped at what this provider is seen to give.

        Without `min_ttl`, fresh means not due. The cap leaves the margin, so that asking for
        more than a provider gives doesn't turn every lease into a refresh.
        """
        if self.expires_at is None:
            return True
        if min_ttl is None:
            return not self.is_due(now, margin)
        if self._is_from_the_future(now):
            return False
        cap = (self.lifetime or min_ttl) - self.refresh_margin(margin)
        return self.expires_at - now >= min(min_ttl, cap)

    def _is_from_the_future(self, now: datetime) -> bool:
        """Some clock was wrong, and its end can't be trusted either."""
        return self.obtained_at - now > CLOCK_SKEW


def _after(at: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else add_time(at, seconds)
