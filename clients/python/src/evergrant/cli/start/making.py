"""What `evergrant init` makes on the server; it undoes nothing that is there already. Every function raises
EvergrantError."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from evergrant.calls.integrations import Integration
from evergrant.cli.apps import key_in_file
from evergrant.cli.show.tables import printable
from evergrant.errors import BadRequest, EvergrantError
from evergrant.models import State
from evergrant.origins import read_key_file
from evergrant.sync_client import Evergrant

_KEPT = ("client_id", "params", "client_auth", "scope_ceiling", "dpop", "binding", "login", "on_reconnect")


def require_same_server(found: Integration, where: Mapping[str, str]) -> None:
    """Refuse to move an integration that works to another provider."""
    there = str(found.members.get("issuer") or found.provider)
    wanted = where.get("issuer", where["provider"])
    if found.state == "ready" and there.rstrip("/") != wanted.rstrip("/"):
        why = f"the integration {found.name} is there already, for {there}"
        raise BadRequest(why, code="already_exists", repair="Give this one another name: --name.")


def have_client(
    client: Evergrant, found: Integration, where: Mapping[str, str], members: Mapping[str, object]
) -> None:
    """The integration with this OAuth client and these scopes. While connections use it, only its secret
    changes."""
    if found.state != "ready":
        _put_new(client, found.name, where, members)
        return
    where = {**where, **({"issuer": str(found.members["issuer"])} if "issuer" in where else {})}
    secret = members.get("client_secret")
    now = {"client_id": found.client_id, "default_scopes": found.members.get("default_scopes")}
    changed = [name for name, value in now.items() if name in members and members[name] != value]
    if not changed:
        if secret:
            client.rotate_client_secret(found.name, str(secret), overlap=timedelta(0))
        return
    if next(client.connections(integration=found.name, state=State.ACTIVE), None) is not None:
        why = f"connections use the integration {found.name}, with another {' and '.join(changed)}"
        raise BadRequest(why, code="integration_in_use", repair="Give this one another name: --name.")
    kept = {name: found.members[name] for name in _KEPT if found.members.get(name) is not None}
    client.put_integration(found.name, **{**kept, **where, **members})


def _put_new(client: Evergrant, name: str, where: Mapping[str, str], members: Mapping[str, object]) -> None:
    """Put the integration; where the server's own issuer differs by a final slash alone, with that issuer.

    Both have one metadata document (RFC 8414 section 3.1), so the server is the one that was named.
    """
    try:
        client.put_integration(name, **where, **members)
    except EvergrantError as refused:
        typed = where.get("issuer", "")
        own = typed.removesuffix("/") if typed.endswith("/") else f"{typed}/"
        if refused.code != "discovery_failed" or not refused.detail.endswith(f" another issuer: {own}"):
            raise
        print(f"The server's own name is {printable(own)}: that is its issuer.", file=sys.stderr)
        client.put_integration(name, **{**where, "issuer": own}, **members)


def have_app(client: Evergrant, app: str, return_to: str) -> None:
    """The app, which browsers may come back to."""
    try:
        now = client.app(app)
    except BadRequest as missing:
        if missing.code != "not_found":
            raise
        client.put_app(app, return_to=(return_to,))
        return
    if return_to not in now.return_to:
        more = (*now.return_to, return_to)
        client.put_app(app, return_to=more, lease_limit=now.lease_limit, disabled=now.disabled)


def have_permit(client: Evergrant, app: str, integration: str, subject: str) -> None:
    """A permit of the app to connect the subject and to lease its tokens, named for the integration."""
    actions = ("token", "connect")
    try:
        now = client.permit(app, integration)
    except BadRequest as missing:
        if missing.code != "not_found":
            raise
        client.put_permit(app, integration, integration=integration, subjects=(subject,), actions=actions)
        return
    if now.effect == "allow" and {subject, "*"}.isdisjoint(now.subjects):
        client.put_permit(
            app,
            integration,
            integration=now.integration,
            actions=now.actions,
            provider=now.provider,
            subjects=(*now.subjects, subject),
            connections=now.connections,
            sources=now.sources,
            scope_ceiling=now.scope_ceiling,
            exact_scopes=now.exact_scopes,
            expires_at=now.expires_at,
            purpose=now.purpose,
            owner=now.owner,
            reason=now.reason,
            methods=now.methods,
            paths=now.paths,
        )


def have_key(client: Evergrant, url: str, app: str, path: Path) -> None:
    """A key of the app in the file: the one that is there, if the server accepts it, or a new one."""
    if not path.exists():
        key_in_file(client, app, path)
        return
    with Evergrant(url, read_key_file(path), allow_plain_http=True) as own:
        try:
            next(own.connections(), None)
        except BadRequest as refused:
            why = f"the key in {path} is not accepted by {url}"
            repair = f"Remove it (rm {path}), or choose another --app; then run this again."
            raise BadRequest(why, code=refused.code, repair=repair) from None
