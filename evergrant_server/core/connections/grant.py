"""A grant: the tokens of one reply, their accounts, scopes and expiry; the words valid, due, fresh. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from evergrant_server.core.clock import CLOCK_SKEW, add_time
from evergrant_server.core.connections.account import Account
from evergrant_server.core.connections.narrowing import narrowed_slot
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.secret import SealableModel, Secret


class FollowUp(StrEnum):
    """What is still open after a new grant."""

    LOOKING_UP = "looking_up"  # the worker requests the accounts from the provider
    CHOOSING = "choosing"  # there are several: the subject or the app chooses one


class AccountOption(FrozenModel):
    """One account that the grant reaches. `metadata` becomes the connection's when it is chosen."""

    id: str
    label: str
    metadata: dict[str, Any] = Field(default_factory=dict)


def matching_option(options: tuple[AccountOption, ...], choice: str | None) -> AccountOption | None:
    """The only account, or the one with the id `choice`; None when one has to be chosen."""
    if len(options) == 1:
        return options[0]
    return next((option for option in options if option.id == choice), None)


MAIN_SLOT = "main"
# among a token's scopes: it may have others. No scope has quotes (RFC 6749 section 3.3)
UNKNOWN_SCOPE = '"unknown"'


def granted_scopes(reply: tuple[str, ...] | None, requested: tuple[str, ...]) -> tuple[str, ...]:
    """What a token reply grants. One without scopes: those requested (RFC 6749 section 5.1); one whose scope
    is empty: these, and it isn't known which others."""
    if reply is None:
        return requested
    return tuple(dict.fromkeys((*requested, *reply))) if UNKNOWN_SCOPE in reply else reply


def known_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can be requested."""
    return tuple(scope for scope in scopes if scope != UNKNOWN_SCOPE)


class Origin(StrEnum):
    """Where a grant's tokens come from, and so whether those of the grant before are still part of it."""

    NEW = "new"  # from a consent, an import, a client grant: of another account, perhaps
    REFRESH = "refresh"  # made from the grant before: what the reply leaves out stays (RFC 6749 section 6)


class TokenSet(SealableModel):
    """The secrets and facts of one token reply, on their way from its parser to the store.

    Never a message: its secrets refuse to be serialised. `expires_in` and
    `refresh_expires_in` are seconds from `obtained_at`; None: the reply had none.
    """

    access_token: Secret
    token_type: str = "Bearer"
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    expires_in: float | None = None
    refresh_expires_in: float | None = None
    # None: the reply had no scope, so as requested (RFC 6749 section 5.1). UNKNOWN_SCOPE: it was empty
    scopes: tuple[str, ...] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    account: Account | None = None  # that the reply names, checked
    server_time: datetime | None = None  # the reply's Date header (RFC 9110 section 6.6.1)
    # by token slot; each is refreshed on its own
    further: dict[str, "TokenSet"] = Field(default_factory=dict)


class Grant(FrozenModel):
    """The facts of a grant, without its secrets. Replaced whole, numbered by `generation`.

    `access_generation`: whose access token it still has, where later refreshes brought narrower ones beside
    it. None: its own.
    """

    slot: str = MAIN_SLOT
    generation: int
    token_type: str = "Bearer"
    scopes: tuple[str, ...]
    obtained_at: datetime
    expires_at: datetime | None
    refresh_expires_at: datetime | None = None
    refreshable: bool
    short_lived: bool = False  # it is exchanged for a long-lived token at once
    metadata: dict[str, Any] = Field(default_factory=dict)
    options: tuple[AccountOption, ...] = ()  # the accounts it reaches, where they were looked up
    access_generation: int | None = None

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
        short_lived: bool = False,
    ) -> "Grant":
        """The facts of a token reply that was requested `at`.

        Its scopes are those of `granted_scopes`, beside those requested, or those of `before`; a refresh
        without a refresh token keeps the old one (RFC 6749 section 6). `renewable`: new tokens are
        requested without a refresh token. The end of a short-lived token is not that of the next.
        """
        kept = before if before is not None and not before.short_lived else None
        return cls(
            generation=generation,
            token_type=tokens.token_type,
            scopes=granted_scopes(tokens.scopes, before.scopes if before else requested),
            obtained_at=at,
            expires_at=_after(at, tokens.expires_in),
            refresh_expires_at=_after(at, tokens.refresh_expires_in)
            or (kept.refresh_expires_at if kept else None),
            refreshable=renewable
            or tokens.refresh_token is not None
            or (kept is not None and kept.refreshable),
            short_lived=short_lived,
            metadata={**(before.metadata if before else {}), **tokens.metadata},
            options=before.options if before else (),
        )

    def narrowed(self, requested: tuple[str, ...], offline: str | None) -> "Grant":
        """The access token of this reply, requested with these scopes, as one beside the main one. The scope
        `offline`, for a refresh token, permits this one nothing."""
        scopes = tuple(scope for scope in self.scopes if scope != offline)
        return self.__replace__(
            slot=narrowed_slot(requested),
            refresh_expires_at=None,
            refreshable=False,
            scopes=scopes,
            metadata={},
            options=(),
        )

    def keeping_access_token(self, before: "Grant") -> "Grant":
        """This reply's grant with the access token of `before`, which stays valid beside a narrower one."""
        facts = ("token_type", "scopes", "obtained_at", "expires_at", "short_lived")
        kept = {name: getattr(before, name) for name in facts}
        return self.__replace__(**kept, access_generation=before.token_generation)

    @property
    def token_generation(self) -> int:
        """The generation that brought its access token."""
        return self.generation if self.access_generation is None else self.access_generation

    @property
    def lifetime(self) -> timedelta | None:
        """Of the access token; None when it never expires."""
        return None if self.expires_at is None else self.expires_at - self.obtained_at

    @property
    def ends_together(self) -> bool:
        """True when the refresh token expires no later than the access token."""
        ends, refresh_ends = self.expires_at, self.refresh_expires_at
        return self.refreshable and ends is not None and refresh_ends is not None and refresh_ends <= ends

    def is_valid(self, now: datetime) -> bool:
        """Not expired."""
        return self.expires_at is None or now < self.expires_at

    def is_due(self, now: datetime, margin: timedelta) -> bool:
        """Inside the refresh margin, which is capped (see `refresh_margin`)."""
        if self.expires_at is None:
            return False
        if self._is_from_the_future(now):
            return True
        return now >= self.expires_at - self.refresh_margin(margin)

    def refresh_margin(self, margin: timedelta) -> timedelta:
        """The margin for this grant: never more than a quarter of the token's lifetime."""
        return margin if self.lifetime is None else min(margin, self.lifetime / 4)

    def is_fresh(self, now: datetime, margin: timedelta, min_ttl: timedelta | None = None) -> bool:
        """Valid for at least `min_ttl`, capped at the lifetime that this provider gives.

        Without `min_ttl`, fresh means not due. The cap leaves the margin, so that a caller
        who wants more than the provider gives doesn't turn every lease into a refresh.
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
        """A clock was wrong, so its end can't be trusted either."""
        return self.obtained_at - now > CLOCK_SKEW


INSTALL_WITHIN = timedelta(days=7)  # a worker that stays away longer finds the connection expired


class ImportedTokens(SealableModel):
    """Tokens that Evergrant didn't request itself, on the way from the API to the worker.

    `expires_at` None means that the access token never expires; a token of unknown expiry
    counts as expired since it was received.
    """

    access_token: Secret
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    token_type: str = "Bearer"
    expires_at: datetime | None
    refresh_expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None  # None: the consent's
    issued_at: datetime | None = None  # None: when it was received
    metadata: dict[str, Any] = Field(default_factory=dict)
    account: Account | None = Field(default=None, repr=False)

    @classmethod
    def from_token_set(cls, tokens: TokenSet, at: datetime) -> "ImportedTokens":
        """Those of a reply that was requested `at`."""
        return cls(
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            token_type=tokens.token_type,
            expires_at=_after(at, tokens.expires_in),
            refresh_expires_at=_after(at, tokens.refresh_expires_in),
            scopes=tokens.scopes,
            metadata=tokens.metadata,
            account=tokens.account,
        )

    def obtained_at(self, received_at: datetime) -> datetime:
        """When the provider issued it, as far as is known; never after its end."""
        issued_at = self.issued_at or received_at
        return issued_at if self.expires_at is None else min(issued_at, self.expires_at)

    def token_set(self, obtained_at: datetime) -> TokenSet:
        left = _seconds(obtained_at, self.expires_at)
        return TokenSet(
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            id_token=self.id_token,
            token_type=self.token_type,
            expires_in=left,
            refresh_expires_in=_seconds(obtained_at, self.refresh_expires_at),
            scopes=self.scopes,
            metadata=self.metadata,
            account=self.account,
        )


def _after(at: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else add_time(at, seconds)


def _seconds(since: datetime, until: datetime | None) -> float | None:
    return None if until is None else (until - since).total_seconds()
