"""The way of a person's browser to the tenant's issuer, and what it comes back with."""

from typing import Any

from evergrant_server.access.context import integration_spec
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.connections.consent import hash_state
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.ids import PersonLoginId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.logins import LOGIN_LASTS, PersonLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import build_authorization_url, new_random_value


async def begin_at_issuer(
    tx: Transaction,
    pages: SubjectPages,
    rule: AdminLogin | ClientLogin,
    there: Integration,
    browser: str,
    *,
    scopes: tuple[str, ...],
    asked: dict[str, str] | None = None,
    **fields: Any,
) -> str:
    """Store a new state, code verifier and nonce with these fields of the login. Returns the login's URL.

    `asked`: further parameters of the request to the issuer.
    """
    state, verifier, nonce = new_random_value(), new_random_value(), new_random_value()
    spec = await integration_spec(tx, pages.api.registry, there)
    redirect_uri = pages.api.redirect_uri(there.id)
    login = PersonLogin(
        tenant=rule.tenant,
        id=PersonLoginId(new_id("pln")),
        rule=rule.id,
        integration_id=there.id,
        state_hash=hash_state(state),
        nonce_hash=hash_of_nonce(nonce.reveal()),
        browser_hash=pages.browsers.hash_cookie(browser),
        redirect_uri=redirect_uri,
        issuer=rule.issuer,
        token_endpoint=integration_endpoints(spec, there).token_endpoint,
        created_at=pages.now,
        expires_at=pages.now + LOGIN_LASTS,
        **fields,
    )
    await tx.person_logins.add(login, verifier)
    return build_authorization_url(
        spec.__replace__(offline_scope=None),  # no token of a login is kept
        there,
        redirect_uri=redirect_uri,
        state=state,
        verifier=verifier,
        scopes=scopes,
        nonce=nonce,
        account=asked or {},
    )
