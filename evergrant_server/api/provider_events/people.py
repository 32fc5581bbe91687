"""What the tenant's own identity provider reports about its people (OpenID Shared Signals Framework 1.0).

The receiver of the integration at which people log in hears of them as well. `session-revoked` and
`credential-change` (CAEP 1.0, sections 3.1 and 3.3) end a person's sessions; `account-disabled` and
`account-purged` (RISC 1.0, sections 2.2 and 2.1) begin their offboarding, where the tenant has a rule about
leavers. A person is `iss` and `sub` (RFC 9493 section 3.2.3): an address alone names nobody here.
"""

from collections.abc import Iterable

from evergrant_server.access import leavers as orders
from evergrant_server.access.context import ApiContext
from evergrant_server.access.leavers import LeaverOrder, grace_of
from evergrant_server.access.person_ends import Ending, PersonsNames, end_sessions
from evergrant_server.access.transactions import run_transaction
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.leavers import NamedPerson, OffboardingRule, person_of_user
from evergrant_server.core.people.roles import Person
from evergrant_server.core.provider_events import ACCOUNT_IS_SUB, Receiver, ReceiverKind
from evergrant_server.store import Transaction
from providers.events.base import ACCOUNT_ID, ProviderEvent
from providers.events.sets import ENDS_PERSON, ENDS_SESSIONS

_TRIES = 20


async def tell_of_people(
    api: ApiContext,
    receiver: Receiver,
    integration: Integration,
    events: Iterable[ProviderEvent],
    context: RequestContext,
) -> dict[str, int]:
    """Do what the events say about people; returns how many sessions have ended, and offboardings begun."""
    ended = begun = 0
    async with api.store.read() as tx:
        issuer = await _issuer_of_people(tx, receiver, integration)
    for event in events if issuer is not None else ():
        for sub in _subs_of(event):
            assert issuer is not None
            person = Person(issuer=issuer, sub=sub)
            if event.kind in ENDS_SESSIONS:
                ended += await _end_sessions(api, receiver, person, event, context)
            elif event.kind in ENDS_PERSON:
                begun += await _leave(api, receiver, person, event, context)
    return {"sessions": ended, "offboardings": begun} if ended or begun else {}


async def _issuer_of_people(tx: Transaction, receiver: Receiver, integration: Integration) -> str | None:
    """The tenant's issuer, if this is its receiver: pinned where people log in. None for any other provider,
    whose word about people counts nothing."""
    if receiver.kind is not ReceiverKind.SET or receiver.account_in != ACCOUNT_IS_SUB:
        return None
    people = await tx.admin_logins.of_tenant(receiver.tenant)
    clients = await tx.client_logins.of_tenant(receiver.tenant)
    rule = await tx.offboarding_rules.of_tenant(receiver.tenant)
    pinned = [login.issuer for login in (people, clients) if login and login.integration == integration.name]
    if rule is not None and rule.issuer is not None and rule.issuer == integration.issuer:
        pinned.append(rule.issuer)
    return next((issuer for issuer in pinned if issuer == integration.issuer), None)


def _subs_of(event: ProviderEvent) -> list[str]:
    """The `sub` of each person that the event is about."""
    named = [identifier for account in event.accounts if len(account) == 1 for identifier in account]
    return [identifier.value for identifier in named if identifier.name == ACCOUNT_ID]


async def _end_sessions(
    api: ApiContext, receiver: Receiver, person: Person, event: ProviderEvent, context: RequestContext
) -> int:
    async def end(tx: Transaction) -> int:
        names = PersonsNames(receiver.tenant, person, set())
        return await end_sessions(tx, names, Ending(context, api.clock.now(), event.kind))

    return await run_transaction(api.store, end, tries=_TRIES)


async def _leave(
    api: ApiContext, receiver: Receiver, person: Person, event: ProviderEvent, context: RequestContext
) -> int:
    """Begin the person's offboarding; without a rule about leavers their sessions end, and no more."""

    async def begin(tx: Transaction) -> int:
        rule = await tx.offboarding_rules.of_tenant(receiver.tenant)
        if rule is None:
            names = PersonsNames(receiver.tenant, person, set())
            await end_sessions(tx, names, Ending(context, api.clock.now(), event.kind))
            return 0
        order = LeaverOrder(
            tenant=receiver.tenant,
            person=await _known(tx, receiver, rule, person),
            reason=event.kind.rpartition("/")[2],
            grace=grace_of(rule, api.settings.offboarding_grace),
            wait=api.settings.incident_wait,
            sponsor=rule.sponsor,
            context=context,
            at=api.clock.now(),
            rule=rule,
        )
        if rule.dry_run:
            await orders.record_plan(tx, order)
            return 0
        await orders.begin(tx, order)
        return 1

    return await run_transaction(api.store, begin, tries=_TRIES)


async def _known(tx: Transaction, receiver: Receiver, rule: OffboardingRule, person: Person) -> NamedPerson:
    """The person with what the tenant's directory tells of them, if it does."""
    user = None
    if rule.issuer == person.issuer:
        user = await tx.directory_users.with_attribute(receiver.tenant, rule.sub_from, person.sub)
    known = NamedPerson() if user is None else person_of_user(user, rule)
    return known.__replace__(issuer=person.issuer, sub=person.sub)
