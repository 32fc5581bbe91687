"""Delegations: an app acts for one person, hands on less, and who may see and end that (RFC 8693)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from httpx2 import Response

from evergrant.calls.call import (
    Call,
    Page,
    error_from,
    list_or_none,
    object_parser,
    page_parser,
    path_of,
    post,
    require_success,
    seconds_or_none,
    without_none,
)
from evergrant.errors import BadRequest, ProtocolError
from evergrant.fields import Fields
from evergrant.identity.access_tokens import ACCESS_TOKEN, TOKEN_PATH

_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_REPAIR = "See docs/guide/delegation.md: evergrant delegations rules ls shows whose tokens count."
SubjectToken = Literal["id_token", "access_token"]


@dataclass(frozen=True, slots=True)
class Delegated:
    """A token that acts for one subject: `Evergrant(api_key=it.token)` leases with it. Hidden in `repr`.

    `scope` None: no bound but the permits. `session_id` is the root of its tree.
    """

    token: str = field(repr=False)
    expires_in: int
    delegation_id: str
    session_id: str
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Delegation:
    """Who acts for whom. `act` nests: the outermost `sub` acts, for the one inside it."""

    id: str
    session_id: str
    parent_id: str | None
    depth: int
    app: str
    subject: str
    act: Mapping[str, Any]
    scopes: tuple[str, ...] | None
    integrations: tuple[str, ...] | None
    connections: tuple[str, ...] | None
    actions: tuple[str, ...]
    state: str
    created_at: datetime
    expires_at: datetime
    stopped_by: str | None
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class DelegationStop:
    """`delegations_ended`: how many live ones ended with this stop."""

    id: str
    session_id: str
    stopped_at: datetime
    stopped_by: str
    stop_reason: str
    delegations_ended: int


@dataclass(frozen=True, slots=True)
class ExplainedLink:
    """What one link of a chain says of a request, and the permit that decided."""

    delegation_id: str
    app: str
    allowed: bool
    reason: str
    permit: str | None
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainedObstacle:
    """What ends a delegation, with the code of a request that meets it."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class DelegationExplanation:
    """`chain` begins with the app that the person's token was given to; each link has to allow a request."""

    delegation_id: str
    session_id: str
    subject: str
    connection_id: str
    action: str
    scopes: tuple[str, ...]
    allowed: bool
    chain: tuple[ExplainedLink, ...]
    stopped_by: tuple[ExplainedObstacle, ...]


@dataclass(frozen=True, slots=True)
class DelegationRule:
    """Which tokens of a trusted issuer let which apps act for people."""

    name: str
    issuer: str
    token_type: str
    audience: str
    claim: str
    domains: tuple[str, ...]
    may_act: bool
    actors: tuple[str, ...]
    clients: Mapping[str, Any]


_DELEGATION, _STOP = object_parser("delegation", Delegation), object_parser("stop", DelegationStop)
_RULE = object_parser("delegation rule", DelegationRule)


def delegate(
    subject_token: str,
    *,
    token_type: SubjectToken = "id_token",
    scopes: Iterable[str] | None = None,
    integrations: Iterable[str] = (),
    connections: Iterable[str] = (),
    gateway_url: str | None = None,
    lifetime: timedelta | None = None,
    may_act: str | None = None,
) -> Call[Delegated]:
    """Act for the person whose token this is, or for less than a delegation's token reaches.

    `token_type` is that of a person's token. `integrations` by name and `connections` by id bound what is
    reached, `scopes` what a leased token may have. `gateway_url`: by calls through this gateway alone.
    `may_act`: the only app that may exchange the token, for one that is handed over. A person's token with a
    `jti` counts once, so this is never sent twice on purpose. Raises BadRequest with the code of RFC 6749.
    """
    resources = [f"{path_of('integrations', it)}" for it in list_or_none(integrations) or ()]
    resources += [path_of("connections", it) for it in list_or_none(connections) or ()]
    if gateway_url is not None:
        resources.append(gateway_url.rstrip("/"))
    own = subject_token.startswith("evg_dlg_") or token_type == "access_token"
    seconds = seconds_or_none(lifetime)
    form: dict[str, str | list[str]] = {
        "grant_type": _GRANT,
        "subject_token": subject_token,
        "subject_token_type": ACCESS_TOKEN if own else _ID_TOKEN,
        "resource": resources,
        **without_none(
            scope=None if scopes is None else " ".join(list_or_none(scopes) or ()),
            expires_in=None if seconds is None else str(int(seconds)),
            may_act=may_act,
        ),
    }
    return Call("POST", TOKEN_PATH, _parse_delegated, form=form)


def delegations(
    app: str | None = None, *, subject: str | None = None, session: str | None = None
) -> Call[Page[Delegation]]:
    """Delegations: of one app, subject or session, if given. An app sees its own, an admin or auditor all."""
    query = without_none(app=app, subject=subject, session=session)
    return Call("GET", path_of("delegations"), page_parser("delegation", Delegation), query=query)


def delegation(id: str) -> Call[Delegation]:
    """One delegation."""
    return Call("GET", path_of("delegations", id), _DELEGATION)


def explain_delegation(
    id: str,
    connection_id: str,
    scopes: tuple[str, ...] = (),
    *,
    action: str = "token",
    method: str | None = None,
    path: str | None = None,
) -> Call[DelegationExplanation]:
    """Whether a connection may be used by a delegation now, and which link of its chain says no."""
    query = {"connection": connection_id, "scopes": " ".join(scopes), "action": action}
    query |= without_none(method=method, path=path)
    parse = object_parser("explanation", DelegationExplanation)
    return Call("GET", path_of("delegations", id, "explain"), parse, query=query)


def stop_delegation(id: str, *, reason: str = "stopped", session: bool = False) -> Call[DelegationStop]:
    """End a delegation with all below it, or the whole session that it is of, at once."""
    body = {"reason": reason, "part": "session" if session else "branch"}
    return post(path_of("delegations", id, "stop"), _STOP, body)


def delegation_rules() -> Call[Page[DelegationRule]]:
    """The tenant's rules."""
    return Call("GET", path_of("delegation-rules"), page_parser("delegation rule", DelegationRule))


def put_delegation_rule(
    name: str,
    issuer: str,
    audience: str,
    *,
    token_type: SubjectToken = "id_token",
    domains: Iterable[str] = (),
    may_act: bool = False,
    actors: Iterable[str] = (),
    clients: Mapping[str, str] | None = None,
) -> Call[DelegationRule]:
    """Say which tokens of a trusted issuer let which apps act for people.

    With `domains` subjects are verified email addresses, otherwise the tokens' `sub`.
    """
    listed = list_or_none(domains) or []
    body: dict[str, object] = {
        "issuer": issuer,
        "token_type": token_type,
        "audience": audience,
        "claim": "email" if listed else "sub",
        "domains": listed,
        "may_act": may_act,
        "actors": list_or_none(actors) or [],
        "clients": dict(clients or {}),
    }
    return Call("PUT", path_of("delegation-rules", name), _RULE, body=body)


def delete_delegation_rule(name: str) -> Call[None]:
    """Accept such tokens no more: what the rule has accepted ends at once."""
    return Call("DELETE", path_of("delegation-rules", name), require_success)


def _parse_delegated(response: Response) -> Delegated:
    if response.status_code != 200:
        raise _refusal(response)
    body = Fields.of_json(response.content, "delegation")
    return body.build(Delegated, token=body.text("access_token"))


def _refusal(response: Response) -> Exception:
    """The error of RFC 6749 section 5.2, or what else the response says."""
    try:
        body = Fields.of_json(response.content, "refusal")
        error, why = body.text("error"), body.text_or_none("error_description")
    except ProtocolError:
        return error_from(response)
    return BadRequest(why or "", code=error, repair=_REPAIR, status=response.status_code)
