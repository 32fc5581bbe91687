"""`evergrant delegations`: who acts for whom, its end, and whose tokens let which apps act."""

from collections.abc import Mapping
from dataclasses import asdict

from cyclopts import App

from evergrant.calls.agents.delegations import Delegation, SubjectToken
from evergrant.cli.output import DEFAULTS, Options, row_of
from evergrant.cli.show.tables import Format, Row, show_one, show_rows

_COLUMNS = ("id", "state", "chain", "subject", "depth", "expires_at", "session_id")
_RULES = ("name", "issuer", "token_type", "audience", "actors", "clients", "may_act")

delegations = App(name="delegations", help="Apps that act for one person: who for whom, and its end.")
rules = App(name="rules", help="Whose tokens let which apps act for people.")
delegations.command(rules)


@delegations.command(name=("ls", "list"))
def list_delegations(
    *,
    app: str | None = None,
    subject: str | None = None,
    session: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """List delegations: all of them for an admin or auditor, else this app's own.

    Args:
        app: Of this app alone.
        subject: For this subject alone.
        session: Of the tree with this root.
    """
    with options.client() as client:
        found = client.delegations(app, subject=subject, session=session)
        show_rows((_row(it) for it in found), _COLUMNS, options.output)


@delegations.command(name="get")
def get_delegation(delegation_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one delegation: its chain, and how far it reaches."""
    with options.client() as client:
        show_one(_row(client.delegation(delegation_id)), options.output)


@delegations.command(name="explain")
def explain_delegation(
    delegation_id: str,
    connection_id: str,
    /,
    *scopes: str,
    action: str = "token",
    method: str | None = None,
    path: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show who acts for whom, and which of them lets a connection be used.

    Args:
        scopes: Those that a lease would request; without any all of the token's.
        action: token or proxy.
        method: Of a request to the provider's API, for the action proxy.
        path: Its path behind the API's base URL.
    """
    with options.client() as client:
        found = client.explain_delegation(
            delegation_id, connection_id, scopes, action=action, method=method, path=path
        )
    if options.output is not Format.TABLE:
        show_one(asdict(found), options.output)
        return
    show_one(
        {"subject": found.subject, "session": found.session_id, "allowed": found.allowed}, options.output
    )
    show_rows((row_of(it) for it in found.chain), ("app", "allowed", "reason", "permit"), options.output)
    show_rows((row_of(it) for it in found.stopped_by), ("code", "detail"), options.output)


@delegations.command(name="stop")
def stop_delegation(
    delegation_id: str,
    /,
    *,
    session: bool = False,
    reason: str = "stopped",
    options: Options = DEFAULTS,
) -> None:
    """End a delegation with all that was delegated by it, at once.

    Args:
        session: End the whole tree that it is of.
        reason: For the audit log.
    """
    with options.client() as client:
        stop = client.stop_delegation(delegation_id, reason=reason, session=session)
    show_one(row_of(stop), options.output)


@rules.command(name=("ls", "list"))
def list_rules(*, options: Options = DEFAULTS) -> None:
    """List the rules of the tenant."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.delegation_rules()), _RULES, options.output)


@rules.command(name="put")
def put_rule(
    name: str,
    /,
    *,
    issuer: str,
    audience: str,
    token_type: SubjectToken = "id_token",
    email_domain: tuple[str, ...] = (),
    actor: tuple[str, ...] = (),
    client: tuple[str, ...] = (),
    may_act: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Say which tokens of a trusted issuer let which apps act. A change ends what the rule has accepted.

    Args:
        issuer: The trusted issuer's name (evergrant issuers ls).
        audience: Whom the tokens are for: the client, or the API for access tokens.
        email_domain: Subjects are verified addresses of this domain; otherwise the tokens' sub. Repeatable.
        actor: An app that may act for every person. Repeatable.
        client: CLIENT=APP: tokens that were issued to this client let this app act. Repeatable.
        may_act: Tokens may name the app themselves.
    """
    named: dict[str, str] = {}
    for it in client:
        of, _, app = it.rpartition("=")
        named[of] = app
    with options.client() as evergrant:
        rule = evergrant.put_delegation_rule(
            name,
            issuer,
            audience,
            token_type=token_type,
            domains=email_domain,
            actors=actor,
            clients=named,
            may_act=may_act,
        )
    show_one(row_of(rule), options.output)


@rules.command(name=("delete", "rm"))
def delete_rule(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Accept such tokens no more: what the rule has accepted ends at once."""
    with options.client() as client:
        client.delete_delegation_rule(name)


def _row(one: Delegation) -> Row:
    """Its members, with the chain from the person's first app on."""
    chain: list[str] = []
    act: object = one.act
    while isinstance(act, Mapping):
        chain.append(str(act.get("sub", "")).removeprefix("app:"))
        act = act.get("act")
    row = {name: value for name, value in row_of(one).items() if value is not None and name != "act"}
    return {**row, "chain": " > ".join(reversed(chain))}
