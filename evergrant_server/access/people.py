"""Authenticates people by their sessions: a browser's cookie, or a bearer token of `evergrant login`.

A person is a caller with the rights of a role. No route that leases authenticates people.
"""

from collections.abc import Collection
from datetime import timedelta
from urllib.parse import urlsplit

from starlette.requests import Request

from evergrant_server.access.callers import Caller, PresentedCredential
from evergrant_server.access.context import ApiContext
from evergrant_server.core.access import App, AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, KeyId
from evergrant_server.core.people.sessions import PersonSession, SessionKind, hash_secret, role_permits
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority

BEARER_PREFIX = "evg_ses_"
_CHANGES_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})
_USE_IS_NOTED_AFTER = timedelta(minutes=1)


def session_cookie(public_url: str) -> str:
    """The cookie's name. `__Host-` needs Secure, and browsers refuse Secure cookies over plain http."""
    return "__Host-evergrant-session" if public_url.startswith("https://") else "evergrant-dev-session"


def presented_secret(api: ApiContext, request: Request) -> tuple[str, bool] | None:
    """A session's secret, and whether it came as a cookie. A header wins over a cookie."""
    headers = request.headers.getlist("authorization")
    if headers:
        scheme, _, text = headers[0].partition(" ")
        credential = text.strip()
        is_session = len(headers) == 1 and scheme.lower() == "bearer" and credential.startswith(BEARER_PREFIX)
        return (credential.removeprefix(BEARER_PREFIX), False) if is_session else None
    cookie = request.cookies.get(session_cookie(api.settings.public_url))
    return None if cookie is None else (cookie, True)


def login_url(api: ApiContext, tenant: str, *, step_up: bool = False) -> str:
    """Where the tenant's people log in; with `step_up` also those whom the issuer still knows."""
    return f"{api.settings.public_url}/login?tenant={tenant}" + ("&step_up=true" if step_up else "")


async def person_caller(
    api: ApiContext, request: Request, further_origins: Collection[str] = ()
) -> Caller | None:
    """The person with the presented session; None when none is presented.

    Raises Failure UNAUTHENTICATED; TENANT_DISABLED unless the session was made on the host;
    CROSS_SITE_REQUEST for another site's form or script, unless it is of `further_origins`.
    """
    presented = presented_secret(api, request)
    if presented is None:
        return None
    secret, by_cookie = presented
    if by_cookie:
        require_same_origin(api, request, further_origins)
    async with api.store.read() as tx:
        session = await live_session(tx, api, secret, by_cookie=by_cookie)
        if session is not None and session.kind is not SessionKind.BREAK_GLASS:
            await tx.tenants.require_enabled(session.tenant)  # the operator's own may still revoke
    if session is None:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The session has ended, or never was one: log in again.")
    now = api.clock.now()
    if session.kind is not SessionKind.BREAK_GLASS and now >= session.last_used_at + _USE_IS_NOTED_AFTER:
        async with api.store.write() as tx:
            await tx.person_sessions.used(session, now)
    app = App(
        tenant=session.tenant,
        id=AppId(session.person_id),
        name=session.by,  # which is no app's name: those are slugs
        created_at=session.created_at,
    )
    method = AuthenticationMethod.PERSON_SESSION
    credential = PresentedCredential(KeyId(session.id), method, session.expires_at)
    return Caller(app, credential, role_permits(session), b"", session)


async def live_session(
    tx: Transaction, api: ApiContext, secret: str, *, by_cookie: bool
) -> PersonSession | None:
    """The session with this secret, if it is live, of this way, and of the login as it is set now.

    A row that was changed by hand is none, with an alarm.
    """
    try:
        session = await tx.person_sessions.by_secret(hash_secret(secret))
        if session is None or not session.is_live(api.clock.now()):
            return None
        if (session.kind is SessionKind.BROWSER) is not by_cookie:
            return None
        if session.rule is not None:
            rule = await tx.admin_logins.of_tenant(session.tenant)
            if rule is None or rule.id != session.rule:
                return None
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        report_broken_authority(failure)
        return None
    return session


def require_same_origin(api: ApiContext, request: Request, further_origins: Collection[str] = ()) -> None:
    """Raise Failure CROSS_SITE_REQUEST for a change that no page of our own or of these origins has sent.

    Browsers send Origin with every request that isn't GET or HEAD (Fetch section 3.1).
    """
    if request.method in _CHANGES_NOTHING:
        return
    origins = {origin_of(api.settings.public_url), *further_origins}
    sent = request.headers.getlist("origin")
    if len(sent) != 1 or sent[0] not in origins:
        raise Failure(ErrorCode.CROSS_SITE_REQUEST)


def origin_of(public_url: str) -> str:
    """The URL's origin as browsers write it (RFC 6454 section 6.2)."""
    url = urlsplit(public_url)
    default = {"http": 80, "https": 443}[url.scheme]
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}" + ("" if url.port in (None, default) else f":{url.port}")
