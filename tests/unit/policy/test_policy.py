"""Permit decisions as tables, and exchanges, which are judged as a lease of their source would be."""

import pytest

from evergrant_server.core.access import Action, Permit
from evergrant_server.core.ids import AppId, PermitId, Tenant
from evergrant_server.policy import DecisionReason, decide, may_exchange, scopes_above, source_scopes
from tests.conformance.store.samples import a_connection, a_grant
from tests.fakes.databases import NOW


def permit(name="p", integration="*", subjects=("*",), ceiling=None, actions=(Action.TOKEN,)):
    return Permit(
        tenant=Tenant("acme"),
        id=PermitId(f"per_{name}"),
        app_id=AppId("app_x"),
        name=name,
        integration=integration,
        subjects=subjects,
        scope_ceiling=ceiling,
        actions=actions,
        created_at=NOW,
    )


@pytest.mark.parametrize(
    ("permits", "asks", "reason"),
    [
        ([], {}, DecisionReason.NO_PERMIT),
        ([permit()], {}, DecisionReason.ALLOWED),
        ([permit(integration="crm")], {}, DecisionReason.ALLOWED),
        ([permit(integration="crm2")], {}, DecisionReason.NO_PERMIT),
        ([permit(integration="cr")], {}, DecisionReason.NO_PERMIT),
        ([permit(subjects=("user-1",))], {}, DecisionReason.ALLOWED),
        ([permit(subjects=("user-10", "user"))], {}, DecisionReason.NO_PERMIT),
        ([permit(actions=(Action.CONNECT,))], {}, DecisionReason.ACTION_NOT_PERMITTED),
        ([permit(actions=(Action.ADMIN,))], {}, DecisionReason.ACTION_NOT_PERMITTED),
        ([permit(ceiling=("read",))], {"scopes": ("read",)}, DecisionReason.ALLOWED),
        ([permit(ceiling=("read",))], {"scopes": ("read", "write")}, DecisionReason.SCOPE_ABOVE_CEILING),
        ([permit(ceiling=())], {"scopes": ("read",)}, DecisionReason.SCOPE_ABOVE_CEILING),
        ([permit(ceiling=())], {}, DecisionReason.ALLOWED),
        # the whole integration, and the whole tenant
        ([permit(subjects=("user-1",))], {"subject": None}, DecisionReason.NO_PERMIT),
        ([permit(integration="crm")], {"subject": None}, DecisionReason.ALLOWED),
        ([permit(integration="crm")], {"integration": None, "subject": None}, DecisionReason.NO_PERMIT),
        ([permit()], {"integration": None, "subject": None}, DecisionReason.ALLOWED),
        # a subject that is called * matches no permit
        ([permit(subjects=("user-1",))], {"subject": "*"}, DecisionReason.NO_PERMIT),
    ],
)
def test_a_verdict_says_why(permits, asks, reason):
    asks = {"integration": "crm", "subject": "user-1", "action": Action.TOKEN, **asks}
    verdict = decide(permits, **asks)
    assert verdict.reason is reason
    assert verdict.allowed is (reason is DecisionReason.ALLOWED)


def test_permits_do_not_add_up():
    """Reading by one permit and writing by another isn't both at once."""
    permits = [permit("a", ceiling=("read",)), permit("b", ceiling=("write",))]
    both = decide(permits, integration="crm", subject="u", action=Action.TOKEN, scopes=("read", "write"))
    assert both.reason is DecisionReason.SCOPE_ABOVE_CEILING
    one = decide(permits, integration="crm", subject="u", action=Action.TOKEN, scopes=("write",))
    assert (one.permit_name, one.ceiling) == ("b", ("write",))


def test_above_takes_every_ceiling_and_none_is_no_ceiling():
    assert scopes_above(("a", "b", "c"), None, ("a", "b"), ("a", "c")) == ("b", "c")
    assert scopes_above(("a",), None, None) == ()


SOURCE = a_connection(requested_scopes=("read", "offline"))


def test_what_counts_is_what_was_granted_and_until_then_what_was_asked_for():
    assert source_scopes(SOURCE, None, None) == ("read", "offline")
    assert source_scopes(SOURCE, a_grant(1, scopes=("read", "write")), None) == ("read", "write")


def test_the_scope_that_brings_a_refresh_token_is_no_scope_of_the_token():
    assert source_scopes(SOURCE, None, "offline") == ("read",)
    assert source_scopes(SOURCE, a_grant(1, scopes=("offline", "write")), "offline") == ("write",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, DecisionReason.ALLOWED),
        ({"subjects": ("user-2",)}, DecisionReason.NO_PERMIT),
        ({"actions": (Action.CONNECT, Action.PROXY, Action.ADMIN)}, DecisionReason.ACTION_NOT_PERMITTED),
        ({"ceiling": ("write",)}, DecisionReason.SCOPE_ABOVE_CEILING),
    ],
)
def test_the_permit_is_that_of_a_lease(changes: dict, reason: DecisionReason):
    given = permit(**{"integration": "github", "actions": (Action.TOKEN,), **changes})
    assert may_exchange([given], SOURCE, ("read",)).reason is reason


def test_without_a_permit_there_is_no_exchange_even_of_a_token_that_can_do_nothing():
    assert not may_exchange([], SOURCE, ()).allowed
