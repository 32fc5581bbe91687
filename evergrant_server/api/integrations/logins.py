"""Where an integration's subjects log in, for the binding `oidc` or for grants of their identity provider."""

import re

from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.models import IntegrationBody
from evergrant_server.core.access import Action
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import require_login
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction

_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")


def login_rule(body: IntegrationBody) -> LoginRule | None:
    """The body's rule. Raises Failure INVALID_REQUEST for one that is missing, superfluous or incomplete."""
    login = body.login
    if login is None:
        if body.binding is Binding.OIDC:
            why = "The binding oidc needs it: the integration at whose issuer the subjects log in."
            raise invalid_request("login", why)
        return None
    if body.binding is not Binding.OIDC:
        raise invalid_request("login", "It belongs to the binding oidc.")
    domains = checked_domains(login.claim, login.domains, "login.domains")
    return LoginRule(integration=login.integration, claim=login.claim, domains=domains)


def checked_domains(claim: LoginClaim, given: tuple[str, ...], field: str) -> tuple[str, ...]:
    """The domains of email addresses, in lower case. Raises Failure INVALID_REQUEST."""
    if (claim is LoginClaim.EMAIL) is not bool(given):
        raise invalid_request(field, "The claim email needs domains; no other claim has them.")
    domains = tuple(dict.fromkeys(it.lower() for it in given))
    for domain in domains:
        if not _DOMAIN.fullmatch(domain):
            raise invalid_request(field, f"{domain[:80]!r} is no domain such as example.com.")
    return domains


async def require_identity_provider(tx: Transaction, call: ApiCall, name: str, given: str | None) -> None:
    """Raise Failure INVALID_REQUEST unless this is another integration, of which the caller is an admin too:
    it decides for what its subjects' id tokens are used."""
    if given is None:
        return
    found = None if given == name else await tx.integrations.by_name(call.tenant, given)
    if found is None or found.identity_provider is not None:
        why = "It is to be the name of the integration at the identity provider."
        raise invalid_request("identity_provider", why)
    call.require_permit(Action.ADMIN, of=Target(found.name, found.provider))


async def pinned_login(tx: Transaction, tenant: Tenant, rule: LoginRule | None) -> LoginRule | None:
    """The rule with the issuer at which its subjects log in now. Raises Failure INVALID_REQUEST, with the
    repair, when none could."""
    if rule is None:
        return None
    try:
        there = require_login(rule, await tx.integrations.by_name(tenant, rule.integration))
    except Failure as failure:
        raise invalid_request("login.integration", failure.detail) from None
    return rule.__replace__(issuer=there.issuer)
