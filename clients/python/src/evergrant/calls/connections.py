"""Connections, their audit records, and the list of providers."""

from collections.abc import Mapping
from datetime import datetime

from evergrant.calls.call import (
    Call,
    Page,
    list_or_none,
    object_parser,
    page_parser,
    path_of,
    post,
    without_none,
)
from evergrant.models import AuditRecord, Connection, Provider, State

_CONNECTION = object_parser("connection", Connection)


def connect(
    integration: str,
    subject: str,
    *,
    label: str = "default",
    scopes: tuple[str, ...] | None = None,
    return_to: str | None = None,
    flow: str | None = None,
    resources: tuple[str, ...] = (),
    audience: str | None = None,
    choice: str | None = None,
    slot_scopes: Mapping[str, tuple[str, ...]] | None = None,
    challenge: str | None = None,
    expect: Mapping[str, str] | None = None,
    login_hint: str | None = None,
) -> Call[Connection]:
    """Begin a connection. Where its `flow` needs a consent, the subject gives it at `connect_url`.

    Without `flow` the provider's definition decides; with `client_credentials`, `jwt_bearer` and the
    like there is no consent, and the connection becomes active by itself. `resources` (RFC 8707) and
    `audience` name what its tokens are for; `choice` the account, where a grant reaches several;
    `slot_scopes` the scopes of further tokens of the same consent, each a connection of its own.
    `challenge` (of `new_verifier`) binds the consent to the session that keeps its verifier: see `confirm`.
    `expect` are claims (`sub`, `email`, `hd`, `tid`) of the account that is meant: a consent with another
    one is refused. `login_hint` helps the provider to choose it; without, an expected `email` does.
    """
    body = without_none(
        integration=integration,
        subject=subject,
        label=label,
        scopes=list_or_none(scopes),
        return_to=return_to,
        flow=flow,
        resources=list(resources) or None,
        audience=audience,
        choice=choice,
        slot_scopes=None if slot_scopes is None else {name: list(of) for name, of in slot_scopes.items()},
        challenge=challenge,
        account=_account(expect, login_hint),
    )
    return post("/v1/connections", _CONNECTION, body)


def connection(connection_id: str, *, live: bool = False) -> Call[Connection]:
    """The connection as the store has it; with `live` also as its workflow describes it."""
    query = {"live": "true"} if live else None
    return Call("GET", path_of("connections", connection_id), _CONNECTION, query=query)


def connections(
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
    state: State | None = None,
    expiring_before: datetime | None = None,
    reference: str | None = None,
) -> Call[Page[Connection]]:
    """Every connection this app may see, fetched page by page. ValueError for a time without a zone.

    `reference` is that of a subject's page: only the connection whose consent failed there.
    """
    if expiring_before is not None and expiring_before.tzinfo is None:
        raise ValueError("expiring_before needs a time zone")
    query = without_none(
        integration=integration,
        provider=provider,
        subject=subject,
        state=state.value if state else None,
        expiring_before=expiring_before.isoformat() if expiring_before else None,
        reference=reference,
    )
    return Call("GET", "/v1/connections", page_parser("connection", Connection), query=query)


def report_refused(connection_id: str, generation: int) -> Call[Connection]:
    body = {"generation": generation, "reason": "unauthorized"}
    return _command(connection_id, "refresh", body)


def refresh(connection_id: str, *, seen_generation: int | None = None) -> Call[Connection]:
    return _command(connection_id, "refresh", without_none(seen_generation=seen_generation))


def reauthorize(
    connection_id: str,
    *,
    scopes: tuple[str, ...] | None = None,
    return_to: str | None = None,
    challenge: str | None = None,
    login_hint: str | None = None,
) -> Call[Connection]:
    """Open a new consent for the same connection. The current grant stays until the subject consents."""
    body = without_none(
        scopes=list_or_none(scopes),
        return_to=return_to,
        challenge=challenge,
        account=_account(None, login_hint),
    )
    return _command(connection_id, "reauthorize", body)


def confirm(connection_id: str, code: str, subject: str, verifier: str | None = None) -> Call[Connection]:
    """Needs no Idempotency-Key: to confirm again gives the same answer."""
    body = without_none(code=code, subject=subject, verifier=verifier)
    return Call("POST", path_of("connections", connection_id, "confirm"), _CONNECTION, body=body)


def choose(connection_id: str, choice: str) -> Call[Connection]:
    """Choose the account the connection is for, by the id of one of its `choices`."""
    return _command(connection_id, "choose", {"choice": choice})


def revoke(connection_id: str, reason: str) -> Call[Connection]:
    return _command(connection_id, "revoke", {"reason": reason})


def audit(connection_id: str | None = None) -> Call[Page[AuditRecord]]:
    """A connection's audit records, or the whole tenant's, fetched page by page."""
    path = "/v1/audit" if connection_id is None else path_of("connections", connection_id, "audit")
    return Call("GET", path, page_parser("audit record", AuditRecord))


def providers() -> Call[Page[Provider]]:
    """The providers of the catalogue, the tenant's own definitions among them."""
    return Call("GET", "/v1/providers", page_parser("provider", Provider, "facts"))


def _account(expect: Mapping[str, str] | None, login_hint: str | None) -> Mapping[str, object] | None:
    """The account that is meant; None where nothing is said of it."""
    return without_none(expect=dict(expect) if expect else None, login_hint=login_hint) or None


def _command(connection_id: str, name: str, body: Mapping[str, object]) -> Call[Connection]:
    return post(path_of("connections", connection_id, name), _CONNECTION, body)
