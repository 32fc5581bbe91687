"""`evergrant agents` and `evergrant delegations`: apps that act for people, and for whom."""

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cyclopts import App

from evergrant.api.commands import SubjectToken
from evergrant.api.models import Delegation
from evergrant.cli.arguments import Days
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, Row, row_of, show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.retries import Deadline

_WAIT = timedelta(seconds=20)  # for a worker; it goes on without this command
_EVERY_S = 0.5
_AGENTS = ("name", "active", "sponsor", "purpose", "ends_at", "id")

agents = App(name="agents")

verb(agents, "ls list", "agents", "List the agents of the tenant.", _AGENTS)
verb(agents, "get", "agent", "Show one agent.")


@agents.command(name="put")
def put_agent(
    agent: str, /, *, purpose: str, days: Days, sponsor: str | None = None, options: Options = DEFAULTS
) -> None:
    """Make an app an agent, or give one another sponsor, purpose or end. A missing app is created.

    Args:
        purpose: What it is for; people read it.
        days: Days from now until it gets nothing more.
        sponsor: Who answers for it: app:NAME, or person:ID. By default whose key or login this is.
    """
    ends_at = datetime.now(UTC) + timedelta(days=days)
    with options.client() as client:
        made = client.put_agent(agent, purpose=purpose, ends_at=ends_at, sponsor=sponsor)
    show_one(made, options.output)


@agents.command(name="stop")
def stop_agent(
    agent: str, /, *, reason: str = "stopped", revoke_connections: bool = False, options: Options = DEFAULTS
) -> None:
    """Stop an agent at once, and wait for the counts of what it had left.

    Args:
        reason: For the audit log.
        revoke_connections: Revoke for good the connections whose tokens no other app has leased.
    """
    with options.client() as client:
        stop = client.stop_agent(agent, reason=reason, revoke_connections=revoke_connections)
        print(f"evergrant: {agent} gets nothing any more", file=sys.stderr)
        deadline = Deadline(_WAIT)
        while stop.finished_at is None and deadline.seconds_left() > 0:
            time.sleep(_EVERY_S)
            stop = client.agent_stop(agent)
    show_one(stop, options.output)


_COLUMNS = ("id", "state", "chain", "subject", "depth", "expires_at", "session_id")
_RULES = ("name", "issuer", "token_type", "audience", "actors", "clients", "may_act")

delegations = App(name="delegations")
rules = App(name="rules", help="Whose tokens let which apps act for people.")

verb(rules, "ls list", "delegation_rules", "List the rules of the tenant.", _RULES)
verb(
    rules,
    "delete rm",
    "delete_delegation_rule",
    "Accept such tokens no more: what the rule has accepted ends at once.",
)
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
        listed = client.delegations(app=app, subject=subject, session=session)
        show_rows((_row(delegation) for delegation in listed), _COLUMNS, options.output)


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
        explanation = client.explain_delegation(
            delegation_id, connection_id, scopes=scopes, action=action, method=method, path=path
        )
    if options.output is not Format.TABLE:
        show_one(explanation, options.output)
        return
    show_one(
        {"subject": explanation.subject, "session": explanation.session_id, "allowed": explanation.allowed},
        options.output,
    )
    show_rows(explanation.chain, ("app", "allowed", "reason", "permit"), options.output)
    show_rows(explanation.stopped_by, ("code", "detail"), options.output)


@delegations.command(name="stop")
def stop_delegation(
    delegation_id: str, /, *, session: bool = False, reason: str = "stopped", options: Options = DEFAULTS
) -> None:
    """End a delegation with all that was delegated by it, at once.

    Args:
        session: End the whole tree that it is of.
        reason: For the audit log.
    """
    with options.client() as client:
        stop = client.stop_delegation(delegation_id, reason=reason, part="session" if session else "branch")
    show_one(stop, options.output)


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
    clients = {pair.rpartition("=")[0]: pair.rpartition("=")[2] for pair in client}
    with options.client() as evergrant:
        rule = evergrant.put_delegation_rule(
            name,
            issuer,
            token_type,
            audience,
            claim="email" if email_domain else "sub",
            domains=email_domain,
            actors=actor,
            clients=clients,
            may_act=may_act,
        )
    show_one(rule, options.output)


def _row(one: Delegation) -> Row:
    """Its members, with the chain from the person's first app on."""
    chain: list[str] = []
    act: object = one.act
    while isinstance(act, Mapping):
        chain.append(str(act.get("sub", "")).removeprefix("app:"))
        act = act.get("act")
    row = {name: value for name, value in row_of(one).items() if value is not None and name != "act"}
    return {**row, "chain": " > ".join(reversed(chain))}
