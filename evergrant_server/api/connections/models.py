"""Request and response bodies of `/v1/connections`."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator, Field

from evergrant_server.api.http.models import (
    Body,
    Challenge,
    Label,
    Page,
    Resource,
    ReturnTo,
    Scopes,
    Slug,
    StorableSecret,
    Subject,
    Text,
    View,
    checked_printable,
    checked_resource,
)
from evergrant_server.core.connections.account import EMAIL
from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import Consent, reference_of
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import AccountOption
from evergrant_server.core.connections.token_state import TokenState
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind, Repairer
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.core.messages.connection import ConnectionDescription
from evergrant_server.core.provider_words import repair_after
from evergrant_server.core.text import is_storable_text
from evergrant_server.problems import invalid_request
from evergrant_server.store.connections.search import StateCounts


def checked_connection_id(value: ConnectionId) -> ConnectionId:
    if not is_id(value, "con"):
        raise ValueError("is not a connection's id")
    return value


Search = Annotated[
    str | None,
    Query(min_length=1, max_length=255, description="How the subject, the label or the id begins"),
]


def storable_search(search: str | None) -> str | None:
    """Raises Failure INVALID_REQUEST for a text that no database stores."""
    if search is not None and not is_storable_text(search):
        raise invalid_request("search", "The text contains NUL or an unpaired surrogate.")
    return search


AccountChoice = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(checked_printable)]


class CredentialBody(Body):
    """A static credential: an API key, or a user name and a password (RFC 7617)."""

    api_key: StorableSecret | None = None
    username: (
        Annotated[str, Field(min_length=1, max_length=255), AfterValidator(checked_printable)] | None
    ) = None
    password: StorableSecret | None = None


class ExpectedAccountBody(Body):
    """What the account's id token must say. `sub` may also be the provider's own id of the account; `email`
    counts where the provider says that it is verified."""

    sub: Text | None = None
    email: Text | None = None
    hd: Text | None = None
    tid: Text | None = None


class AccountBody(Body):
    """The account at the provider that is meant; `login_hint` is sent there to choose it."""

    expect: ExpectedAccountBody | None = None
    login_hint: Text | None = None

    @property
    def expected(self) -> dict[str, str]:
        return {} if self.expect is None else self.expect.model_dump(exclude_none=True)

    @property
    def hint(self) -> str | None:
        return self.login_hint or self.expected.get(EMAIL)


SlotScopes = Annotated[
    dict[Annotated[str, Field(max_length=63)], Annotated[Scopes, Field(min_length=1)]], Field(max_length=5)
]


class ConnectionBody(Body):
    """Create a connection. `return_to` must equal a URL of the app's list.

    `flow` says how the connection gets its tokens; the default is the first flow of the provider's
    definition. `resources` (RFC 8707) and `audience` say what the tokens are for, in flows that
    support them. `token_exchange` needs a `source` (the connection whose token is exchanged) or a
    `subject_token`; `api_key` and `basic` need the `credential`. `choice` is the account to use when
    the grant reaches several. `slot_scopes` are the scopes of further tokens that the same consent
    brings, by the name of their token slot (at Slack `user`): each becomes a connection of its own,
    with that name as its label. `challenge` is the S256 hash (RFC 7636 section 4.2) of a verifier that
    the app keeps in the subject's session: the confirmation of the consent then needs the verifier.
    `account` says which account at the provider is meant: a consent with another one is refused.
    """

    integration: Slug
    subject: Subject
    label: Label = "default"
    scopes: Scopes | None = None
    flow: Flow | None = None
    resources: Annotated[tuple[Resource, ...], Field(max_length=5)] = ()
    audience: Text | None = None
    source: Annotated[ConnectionId, AfterValidator(checked_connection_id)] | None = None
    subject_token: StorableSecret | None = None
    subject_token_type: Annotated[str, Field(max_length=200), AfterValidator(checked_resource)] | None = None
    credential: CredentialBody | None = None
    choice: AccountChoice | None = None
    slot_scopes: SlotScopes | None = None
    return_to: ReturnTo | None = None
    challenge: Challenge | None = None
    account: AccountBody | None = None

    @property
    def target(self) -> TokenTarget:
        return TokenTarget(
            resources=self.resources, audience=self.audience, subject_token_type=self.subject_token_type
        )


class ChooseBody(Body):
    """The `id` of one of the connection's `choices`."""

    choice: AccountChoice


class ConfirmBody(Body):
    """`code` is the `evergrant_code` that the browser brought; `subject` is who is logged in to the app.

    `verifier` is what `challenge` was made of; needed if there was a challenge, refused otherwise.
    """

    code: StorableSecret
    subject: Subject
    verifier: StorableSecret | None = None


class ReauthorizeBody(Body):
    """Request a new consent, for the same scopes unless others are given.

    What the connection expects of the account stays as it is: `account` can give a `login_hint` alone.
    """

    scopes: Scopes | None = None
    slot_scopes: SlotScopes | None = None
    return_to: ReturnTo | None = None
    challenge: Challenge | None = None
    account: AccountBody | None = None


class RevokeBody(Body):
    reason: Text = "requested"


class LiveView(View):
    """The workflow's answer to the `describe` query."""

    state: LifecycleState
    generation: int
    expires_at: datetime | None
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    next_step: str
    next_at: datetime | None
    failed: ErrorCode | None = None
    failing_since: datetime | None = None

    @classmethod
    def of_workflow(cls, described: ConnectionDescription) -> "LiveView":
        failed, since = described.revocation_failure, described.revocation_failing_since
        return cls.of(described, failed=failed, failing_since=since)

    def differences_from(self, stored: "ConnectionView") -> tuple[str, ...]:
        """The members whose values differ; the store keeps no expiry of an ended connection."""
        names = ("state", "generation", *(() if stored.state.is_final else ("expires_at",)), "reason")
        return tuple(name for name in names if getattr(self, name) != getattr(stored, name))


class DeviceView(View):
    """The subject enters `user_code` at `verification_uri` (RFC 8628 section 3.2)."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_at: datetime


class RevocationProgressView(View):
    """A revocation that the provider hasn't confirmed. `failure` is that of the last attempt."""

    since: datetime | None
    failure: ErrorCode | None
    failed_at: datetime | None


class ProviderSaidView(View):
    """The newest refusal in which the provider said something, else the newest refusal.

    `reference` is what the subject's page shows, where the refusal ended a consent. `unauthenticated`: the
    words came by a browser, in a callback that was refused.
    """

    at: datetime
    reason: ErrorCode | None
    reference: str | None
    status: int | None = None
    error: str | None = None
    description: str | None = None
    unauthenticated: bool = False


class FailedConsentView(View):
    """How the newest consent has failed: the members of a problem document, and the reference that the
    subject's page shows. Another link is needed."""

    code: ErrorCode
    detail: str
    kind: FailureKind
    repairer: Repairer
    repair: str
    reference: str

    @classmethod
    def of(cls, consent: Consent, error: str | None = None) -> "FailedConsentView":
        """`error`: what the provider called it."""
        failure = Failure(ErrorCode(consent.failure or ErrorCode.INTERNAL))
        return cls(
            code=failure.code,
            detail=failure.detail,
            kind=failure.kind,
            repairer=failure.rule.repairer,
            repair=repair_after(failure.code, error),
            reference=reference_of(consent.id),
        )


class ConnectionView(View):
    """`expires_at` is the access token's; in the response to `POST /v1/connections` it is the link's.

    `metadata` are facts of the grant, such as the account's id or the API's host. `choices` are the
    accounts that the grant reaches, if the provider lists them; with the reason `choice_required` the
    API issues no lease before one is chosen.
    `account` is the name that the provider gave to the account, such as an email address: only in lists with
    `accounts=true`, for an app that may lease its token or that made the connection.
    `expected_account` are the claims by which the app has said which account it expects.
    `consented_with` is set for a further token slot: the connection whose consent brings its grants.
    `revoking` is set until the provider has confirmed a revocation. `revocation` is how it ended: `confirmed`
    speaks of every token; `unknown` says that an answer was lost, whose token may live on at the provider.
    `token_state` says what the access token is: of an active connection `idle`, `due`, `late` or `failing`
    where it has expired. `idle`: no app has asked since, and the next one that asks gets a new one.
    `repairer` is whose turn it is: an admin's, not the subject's, where the newest consent has failed by the
    integration or a permit, until the integration is changed.
    `provider_said` explains one connection's failure to an admin, and is null elsewhere.
    `failed_consent` is set while the newest consent has failed or was denied; in lists only of connections
    that wait for one. `missing_scopes` are those that were requested and that the grant lacks: only where one
    connection is read.
    `failing_since` is set while refreshes keep failing; the token is valid until it expires.
    `live` (with the next attempt as `next_at`) and `differs` are null unless the request had
    `live=true` and the workflow answered.
    """

    id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: LifecycleState
    generation: int
    scopes: tuple[str, ...]
    requested_scopes: tuple[str, ...]
    expires_at: datetime | None
    token_state: TokenState = TokenState.NONE
    reason: ErrorCode | None
    repairer: Repairer | None
    failures: int
    last_failure: ErrorCode | None
    last_failed_at: datetime | None
    failing_since: datetime | None
    revocation: RevocationOutcome | None
    revoke_reason: str | None
    flow: Flow
    resources: tuple[str, ...] = ()
    audience: str | None = None
    metadata: dict[str, Any] = Field(default={})
    api_base_url: str | None = None
    choice: str | None = None
    choices: tuple[AccountOption, ...] = ()
    slot_scopes: dict[str, tuple[str, ...]] = Field(default={})
    account: str | None = None
    expected_account: tuple[str, ...] = ()
    consented_with: str | None = None
    created_at: datetime
    changed_at: datetime
    revision: int
    next_action: str | None = None
    next_at: datetime | None = None
    connect_url: str | None = None
    connect_expires_at: datetime | None = None
    device: DeviceView | None = None
    revoking: RevocationProgressView | None = None
    provider_said: ProviderSaidView | None = None
    failed_consent: FailedConsentView | None = None
    missing_scopes: tuple[str, ...] = ()
    live: LiveView | None = None
    differs: tuple[str, ...] | None = None


class ConnectionList(Page[ConnectionView]):
    """`unreadable` are the ids of connections of this page whose rows the server can't read: their repairer
    is the operator, whose log names the fields."""

    unreadable: tuple[str, ...] = ()


class ConnectionTotals(View):
    """How many connections a filter has, by their state. `failing` are active ones whose refresh fails, or
    whose account is to be chosen. `complete` false: a count has stopped, and there are more."""

    total: int
    states: dict[LifecycleState, int]
    failing: int
    complete: bool

    @classmethod
    def of_counts(cls, counts: StateCounts) -> "ConnectionTotals":
        return cls(
            total=sum(counts.states.values()),
            states=counts.states,
            failing=counts.failing,
            complete=counts.complete,
        )


class TimelineEvent(View):
    """One event of the history of a connection's workflow."""

    at: datetime
    run_id: str
    event_id: int
    what: str
    detail: dict[str, Any]


class Timeline(View):
    """`live` is false when Temporal didn't answer: then only exported runs are listed."""

    items: list[TimelineEvent]
    live: bool
    next_cursor: str | None = None
