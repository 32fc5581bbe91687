"""Permit decisions as a table."""

import pytest

from evergrant_server.core.access import Action, Permit
from evergrant_server.core.ids import AppId, PermitId, Tenant
from evergrant_server.policy import DecisionReason, decide, may_see, scopes_above
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


def test_an_admin_permit_is_not_a_token_permit():
    admin = [permit(actions=(Action.ADMIN,))]
    assert decide(admin, integration="crm", subject="u", action=Action.ADMIN).allowed
    assert not decide(admin, integration="crm", subject="u", action=Action.TOKEN).allowed
    assert may_see(admin, integration="crm", subject="u")


def test_above_takes_every_ceiling_and_none_is_no_ceiling():
    assert scopes_above(("a", "b", "c"), None, ("a", "b"), ("a", "c")) == ("b", "c")
    assert scopes_above(("a",), None, None) == ()
