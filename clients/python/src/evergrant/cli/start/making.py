"""What `evergrant init` makes on the server; it undoes nothing that is there already. Every function raises
EvergrantError."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import cast

from evergrant.calls.integrations import Integration
from evergrant.cli.apps import key_in_file
from evergrant.cli.show.tables import printable
from evergrant.errors import BadRequest, EvergrantError
from evergrant.models import State
from evergrant.origins import read_key_file
from evergrant.sync_client import Evergrant

_KEPT = (
    *("client_id", "params", "client_auth", "scope_ceiling", "dpop", "binding", "login", "on_reconnect"),
    "identity_provider",
)


def require_same_server(found: Integration, where: Mapping[str, str]) -> None:
    """Refuse to move an integration that works to another provider."""
    there = found.members.get("issuer") or _params(found).get("url") or found.provider
    wanted = where.get("issuer", where["provider"])
    if found.state == "ready" and str(there).rstrip("/") != wanted.rstrip("/"):
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
    issuer = found.members.get("issuer")
    where = {"provider": found.provider, **({"issuer": str(issuer)} if issuer else {})}
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
    """Put the integration. A URL that is no issuer is another one's by a final slash, or an MCP server's.

    With and without the slash there is one metadata document (RFC 8414 section 3.1): the server that answers
    is the one that was named.
    """
    try:
        client.put_integration(name, **where, **members)
    except EvergrantError as refused:
        if refused.code != "discovery_failed" or "issuer" not in where:
            raise
        typed = where["issuer"]
        own = typed.removesuffix("/") if typed.endswith("/") else f"{typed}/"
        if refused.detail.endswith(f" another issuer: {own}"):
            _say(f"The server's own name is {own}: that is its issuer.")
            client.put_integration(name, **{**where, "issuer": own}, **members)
            return
        _put_mcp(client, name, typed, members, refused)


def _put_mcp(
    client: Evergrant, name: str, url: str, members: Mapping[str, object], refused: EvergrantError
) -> None:
    """Put the integration for an MCP server, whose metadata names its issuer (RFC 9728).

    Raises `refused` if it is none.
    """
    own = {member: value for member, value in members.items() if member != "registration"}
    try:
        client.put_integration(name, provider="mcp", params={"url": url}, **own)
    except EvergrantError as second:
        if second.code in ("discovery_failed", "invalid_request", "not_found"):
            raise refused from None
        raise
    _say(f"{url} is an MCP server, and names who issues tokens for it.")


def _params(found: Integration) -> Mapping[str, object]:
    params = found.members.get("params")
    return cast(Mapping[str, object], params) if isinstance(params, dict) else {}


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)


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
            call_approval=now.call_approval,
            tools=now.tools,
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
