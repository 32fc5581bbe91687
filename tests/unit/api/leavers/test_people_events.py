"""Shared Signals of the tenant's own identity provider about its people (SSF 1.0, CAEP 1.0, RISC 1.0)."""

from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.people.roles import Person, PersonRole
from tests.fakes.api import TENANT, Api
from tests.fakes.events.security_events import TRANSMITTER, push, receiver, unix
from tests.fakes.events.transmitter import ISSUER
from tests.security.people import put_session
from tests.unit.api.leavers.people import OFFBOARDINGS, Work, a_user, at_work, lease_of

_EVENTS = "https://schemas.openid.net/secevent"
SESSION_REVOKED = f"{_EVENTS}/caep/event-type/session-revoked"
CREDENTIAL_CHANGE = f"{_EVENTS}/caep/event-type/credential-change"
ACCOUNT_DISABLED = f"{_EVENTS}/risc/event-type/account-disabled"
ACCOUNT_ENABLED = f"{_EVENTS}/risc/event-type/account-enabled"
SUB = "staff-7"
RULE = {"subject_from": "user_name", "sub_from": "external_id", "issuer": ISSUER}


async def heard(api: Api, *, people: bool = True, **rule: Any) -> tuple[Work, str, str]:
    """A receiver at the integration at which people log in; its path, and a session of one of them."""
    work = await at_work(api)
    endpoints = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}token", "jwks_uri": f"{ISSUER}keys"}
    endpoints["authorization_endpoint"] = f"{ISSUER}authorize"
    staff = await api.integration("staff", issuer=ISSUER, endpoints=endpoints)
    if people:
        login = {"integration": staff.name, "roles": {"auditor": ["board"]}}
        made = await api.call("PUT", "/v1/admin-login", work.boss, json=login)
        assert made.status_code == 201, made.text
    if rule:
        await api.call("PUT", "/v1/offboarding-rule", work.boss, json=rule)
    path = await receiver(api, work.boss, "staff")
    person = Person(issuer=ISSUER, sub=SUB)
    _, session = await put_session(api, TENANT, PersonRole.AUDITOR, person=person)
    return work, path, session


async def told(api: Api, path: str, kind: str, sub: str = SUB, subject: dict[str, Any] | None = None) -> None:
    named = subject or {"format": "iss_sub", "iss": ISSUER, "sub": sub}
    answer = await push(api, path, TRANSMITTER.token(unix(api), kind=kind, subject=named))
    assert answer.status_code == 202, answer.text


async def is_logged_in(api: Api, session: str) -> bool:
    return (await api.get("/v1/sessions/current", session)).status_code == 200


@pytest.mark.parametrize("kind", [SESSION_REVOKED, CREDENTIAL_CHANGE])
async def test_caep_3_1_and_3_3_the_persons_sessions_end_and_nobody_elses(api: Api, kind: str):
    _, path, session = await heard(api)
    await told(api, path, kind, "another")
    assert await is_logged_in(api, session)
    await told(api, path, kind)
    assert not await is_logged_in(api, session)
    heard_of = await api.records(AuditAction.SECURITY_EVENT)
    assert sorted(record.detail.get("sessions", 0) for record in heard_of) == [0, 1]


async def test_risc_2_a_disabled_account_begins_the_offboarding_that_the_directory_knows(api: Api):
    work, path, session = await heard(api, **RULE)
    async with api.worker.write() as tx:
        await tx.directory_users.put(a_user(api, "alice", SUB), expected=None)
    await told(api, path, ACCOUNT_DISABLED)
    assert not await is_logged_in(api, session)
    assert await lease_of(api, work) == "connection_held"
    (offboarding,) = (await api.get(OFFBOARDINGS, work.boss)).json()["items"]
    assert (offboarding["subject"], offboarding["reason"]) == ("alice", "account-disabled")
    await told(api, path, ACCOUNT_DISABLED)
    assert len((await api.get(OFFBOARDINGS, work.boss)).json()["items"]) == 1


async def test_without_a_rule_a_disabled_account_ends_sessions_and_no_more(api: Api):
    work, path, session = await heard(api)
    await told(api, path, ACCOUNT_DISABLED)
    assert not await is_logged_in(api, session)
    assert (await api.get(OFFBOARDINGS, work.boss)).json()["items"] == []


async def test_with_a_dry_run_it_is_recorded_and_nothing_begins(api: Api):
    work, path, _ = await heard(api, **RULE, dry_run=True)
    await told(api, path, ACCOUNT_DISABLED)
    assert (await api.get(OFFBOARDINGS, work.boss)).json()["items"] == []
    assert len(await api.records(AuditAction.OFFBOARDING_PLANNED)) == 1


async def test_another_providers_word_about_people_counts_nothing(api: Api):
    work, path, session = await heard(api, people=False)
    for kind in (SESSION_REVOKED, ACCOUNT_DISABLED):
        await told(api, path, kind)
    assert await is_logged_in(api, session)
    assert (await api.get(OFFBOARDINGS, work.boss)).json()["items"] == []


STRANGE: dict[str, dict[str, Any]] = {
    "an address alone": {"format": "email", "email": "alice@example.com"},
    "another issuer's": {"format": "iss_sub", "iss": "https://evil.example/", "sub": SUB},
    "no format": {"sub": SUB},
}


@pytest.mark.parametrize("subject", STRANGE.values(), ids=STRANGE)
async def test_who_is_named_otherwise_is_nobody(api: Api, subject: dict[str, Any]):
    work, path, session = await heard(api, **RULE)
    for kind in (SESSION_REVOKED, ACCOUNT_DISABLED):
        await told(api, path, kind, subject=subject)
    assert await is_logged_in(api, session)
    assert (await api.get(OFFBOARDINGS, work.boss)).json()["items"] == []


async def test_an_enabled_account_says_nothing(api: Api):
    _, path, session = await heard(api)
    await told(api, path, ACCOUNT_ENABLED)
    assert await is_logged_in(api, session)
