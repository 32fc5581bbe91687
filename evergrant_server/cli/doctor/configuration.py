"""Checks of what tenants have configured: bindings, logins, hosts, issuers, permits, and how exchanges go."""

from datetime import timedelta
from urllib.parse import urlsplit

from evergrant_server import audit
from evergrant_server.audit.exchanges import newest_exchanges
from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.keys import open_store, reading
from evergrant_server.cli.pinned_hosts.waiting import waiting
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.errors import FAILURES, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import require_pinned_login
from evergrant_server.core.webhooks import Webhook
from evergrant_server.core.workloads.issuer import KEYS_SERVE, TrustedIssuer
from evergrant_server.settings import Settings
from evergrant_server.settings.types import is_loopback
from evergrant_server.store import Transaction
from providers.definition.registry import Registry

_MOST_NAMED = 5
_MOST_LOOKED_AT = 500  # integrations
_READ = 1000  # records, the newest
_UNCONFIRMED_FOR = timedelta(days=1)
_CONSENTS = (AuditAction.CONSENT_UNCONFIRMED, AuditAction.CONSENT_CONFIRMED, AuditAction.GRANT_INSTALLED)


async def bindings(settings: Settings) -> str:
    """Find integrations whose consents aren't bound to their subjects: no problem on one's own machine."""
    async with reading(settings) as tx:
        unbound = await tx.integrations.with_binding(Binding.NONE, _MOST_NAMED + 1)
    named = ", ".join(
        f"{integration.name} (tenant {integration.tenant})" for integration in unbound[:_MOST_NAMED]
    )
    named += " and more" if len(unbound) > _MOST_NAMED else ""
    if not unbound:
        return "every integration binds consents to their subjects"
    if is_loopback(urlsplit(settings.public_url).hostname or ""):
        return f"unbound: {named}; any person who opens their links connects an account"
    raise CheckFailed(
        f"any person who opens a connect link connects their own account at {named}",
        "PUT /v1/integrations/{name} with the binding app; see docs/guide/binding.md",
    )


async def logins(settings: Settings) -> str:
    """Find integrations of the binding `oidc` at whose issuer no subject can log in."""
    broken: list[str] = []
    async with reading(settings) as tx:
        bound = await tx.integrations.with_binding(Binding.OIDC, 1000)
        for integration in bound:
            named = (
                None
                if integration.login is None
                else await tx.integrations.by_name(integration.tenant, integration.login.integration)
            )
            try:
                require_pinned_login(integration.login, named)
            except Failure as failure:
                broken.append(f"{integration.name} (tenant {integration.tenant}): {failure.detail}")
    if not broken:
        return f"{len(bound)} integrations have their subjects log in first"
    rest = " And more." if len(broken) > _MOST_NAMED else ""
    raise CheckFailed(
        " ".join(broken[:_MOST_NAMED]) + rest,
        "PUT /v1/integrations/{name} for the one that the login names, or for this one again, which pins the "
        "login to that one's issuer; see docs/guide/binding.md",
    )


async def hosts(settings: Settings) -> str:
    """Find hosts at which no grant was made: refreshes and revocations wait that would be sent there."""
    named: list[str] = []
    async with open_store(settings) as store:
        async for waiting_host in waiting(store, Registry.load()):
            if len(named) == _MOST_NAMED:
                named.append("and more")
                break
            if waiting_host.connection is not None:
                waits = f"connection {waiting_host.connection.id} waits"
            else:
                async with store.read() as tx:
                    ids = await tx.pinned_hosts.granted(waiting_host.integration)
                    number = await tx.pinned_hosts.count_granted(waiting_host.integration)
                waits = f"{number} connections wait ({', '.join([*ids[:2], *['…'][: number > 2]])})"
            named.append(f"{waiting_host}: {waits}")
    if not named:
        return "tokens and client credentials go only where grants were made"
    raise CheckFailed("nothing is sent to " + "; ".join(named), f"{COMMAND} authority hosts")


async def trusted_issuers(settings: Settings) -> str:
    """Find issuers whose keys couldn't be read the last time: a day later their apps can't get tokens."""
    async with reading(settings) as tx:
        failing = await tx.trusted_issuers.with_problems(_MOST_NAMED + 1)
    if not failing:
        return "the keys of every trusted issuer could be read"
    rest = " And more." if len(failing) > _MOST_NAMED else ""
    raise CheckFailed(
        " ".join(_named(issuer) for issuer in failing[:_MOST_NAMED]) + rest,
        "Correct the issuer, or where its keys are: evergrant issuers put NAME KIND ISSUER --jwks-uri URL",
    )


def _named(issuer: TrustedIssuer) -> str:
    left = "no keys serve"
    if issuer.keys_at is not None and issuer.usable_keys(SystemClock().now()):
        left = f"the last good keys serve until {issuer.keys_at + KEYS_SERVE:%Y-%m-%d %H:%M} UTC"
    return f"{issuer.name} (tenant {issuer.tenant}): {issuer.keys_problem}; {left}."


async def addresses(settings: Settings) -> str:
    """Find permits with `sources` behind a proxy that no setting names: they judge the proxy's address."""
    async with reading(settings) as tx:
        count = await tx.access.permits_with_sources()
    if settings.trusted_proxies:
        return f"X-Forwarded-For counts from {', '.join(settings.trusted_proxies)}"
    if count and settings.public_url.startswith("https:"):  # the API itself speaks http
        raise CheckFailed(
            f"{count} permits have sources, and no proxy is named: what ends TLS passes for the caller",
            "EVERGRANT_TRUSTED_PROXIES=<its addresses>    # and have it append to X-Forwarded-For",
        )
    return f"X-Forwarded-For counts from no peer; {count} permits have sources"


async def token_limits(settings: Settings) -> str:
    """Find integrations whose refreshes use what their provider's token endpoint allows the client."""
    shares = {
        spec.name: spec.token_limit.share for spec in Registry.load().all() if spec.token_limit is not None
    }
    limited = {name: share for name, share in shares.items() if share is not None}
    now, used = SystemClock().now(), list[str]()
    async with reading(settings) as tx:
        integrations = await tx.integrations.at_providers(list(limited), _MOST_LOOKED_AT)
        for integration in integrations:
            until = await tx.attempts.share_used_until(
                integration.tenant, integration.id, limited[integration.provider]
            )
            if until is not None and until > now:
                name = f"{integration.name} (tenant {integration.tenant}) at {integration.provider}"
                used.append(f"{name}, until {until:%H:%M:%S} UTC")
    if not used:
        return f"room for refreshes ahead; {len(integrations)} integrations are at a provider with a limit"
    raise CheckFailed(
        f"refreshes that no caller waits for are postponed: {'; '.join(used[:_MOST_NAMED])}"
        + (", and more" if len(used) > _MOST_NAMED else ""),
        "If it lasts, ask the provider for a higher limit, or set the refresh policy on_demand",
    )


async def exchanges(settings: Settings) -> str:
    """Each integration's last exchange with its provider worked, unless it is the subject's to repair."""
    async with reading(settings) as tx:
        newest = await newest_exchanges(tx, Tenant(settings.tenant))
    failed = {name: exchange.failure for name, exchange in newest.items() if exchange.failure is not None}
    if not failed:
        return f"the last exchange of each of {len(newest)} integrations worked"
    named = [f"{name}: {code}, {FAILURES[code].meaning}" for name, code in list(failed.items())[:_MOST_NAMED]]
    first, code = next(iter(failed.items()))
    raise CheckFailed(
        f"the last exchange of {len(failed)} of {len(newest)} integrations failed: {' '.join(named)}",
        f"{FAILURES[code].repair} What the provider said: evergrant audit {newest[first].connection}",
    )


async def audit_streams(settings: Settings) -> str:
    """The receivers of the audit log's streams take what they are sent."""
    async with reading(settings) as tx:
        states = [
            state
            for state in (*await tx.stream_states.failing(_MOST_LOOKED_AT), *await tx.stream_states.behind())
            if settings.audit_stream_url or not state.is_of_installation
        ]
        failing = list({state.id: state for state in states if state.failures}.values())
        named = [f"{await _stream_name(tx, state)}: {_why_behind(state)}" for state in failing[:_MOST_NAMED]]
    if not failing:
        unsent = max((state.unsent for state in states), default=0)
        return f"every receiver takes what it is sent; at most {unsent} records wait for one"
    raise CheckFailed(
        "; ".join(named) + (", and more" if len(failing) > _MOST_NAMED else ""),
        "Repair the receiver, or correct the stream: evergrant streams put NAME URL, or the settings "
        "EVERGRANT_AUDIT_STREAM_…; nothing is lost meanwhile",
    )


async def webhooks(settings: Settings) -> str:
    """The endpoints of webhooks take what they are sent, and none was switched off for failing."""
    async with reading(settings) as tx:
        failing = await tx.webhooks.failing(_MOST_NAMED + 1)
        named = [await _failing_webhook(tx, webhook) for webhook in failing[:_MOST_NAMED]]
    if not failing:
        return "every endpoint took the last delivery"
    name = failing[0].name
    raise CheckFailed(
        "; ".join(named) + (", and more" if len(failing) > _MOST_NAMED else ""),
        f"See what it answers: evergrant webhooks deliveries {name} --status failed. Once it is repaired: "
        f"evergrant webhooks put {name} URL, which switches it on again, and evergrant webhooks replay",
    )


async def _failing_webhook(tx: Transaction, webhook: Webhook) -> str:
    newest = await tx.deliveries.page(webhook.tenant, webhook.id, limit=_MOST_NAMED)
    failed = next((delivery for delivery in newest if delivery.problem is not None), None)
    why = "fails" if failed is None else str(failed.problem)
    status = "" if failed is None or failed.response_status is None else f" with {failed.response_status}"
    since = "" if webhook.failing_since is None else f" since {webhook.failing_since:%Y-%m-%d %H:%M} UTC"
    off = ", and is switched off" if webhook.disabled else ""
    return f"{webhook.name} (tenant {webhook.tenant}): {why}{status}{since}{off}"


async def _stream_name(tx: Transaction, state: StreamState) -> str:
    if state.is_of_installation:
        return "EVERGRANT_AUDIT_STREAM_URL"
    stream = await tx.audit_streams.unchecked(state.tenant, state.id)
    return f"{stream.name if stream else state.id} (tenant {state.tenant})"


def _why_behind(state: StreamState) -> str:
    status = "" if state.response_status is None else f" with {state.response_status}"
    since = "" if state.failing_since is None else f" since {state.failing_since:%Y-%m-%d %H:%M} UTC"
    return f"{state.problem}{status}{since}, {state.unsent} records wait"


async def confirmations(settings: Settings) -> str:
    """Apps confirm the consents that come back to them: one that isn't confirmed is never exchanged."""
    since = SystemClock().now() - _UNCONFIRMED_FOR
    async with reading(settings) as tx:
        consents = await audit.newest_of_tenant(tx, Tenant(settings.tenant), _CONSENTS, among=_READ)
    newest = {record.object: record for record in reversed(consents) if record.at >= since}
    unbound = [
        record.object for record in newest.values() if record.action is AuditAction.CONSENT_UNCONFIRMED
    ]
    if not unbound:
        return "every consent that came back within a day was confirmed"
    raise CheckFailed(
        f"{len(unbound)} consents came back within a day and their apps confirmed none of them in time: "
        f"{', '.join(unbound[:_MOST_NAMED])}",
        "Have the app confirm who consented: docs/guide/binding.md. In a terminal `evergrant connect` does",
    )
