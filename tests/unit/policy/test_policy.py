"""Permit decisions as tables, and exchanges, which are judged as a lease of their source would be."""

from datetime import timedelta

import pytest

from evergrant_server.core.access import Action, Effect, EnforcementMode, Permit
from evergrant_server.core.ids import AppId, PermitId, Tenant
from evergrant_server.policy import (
    DecisionReason,
    PermitDecision,
    PermitQuestion,
    Target,
    decide,
    may_exchange,
    may_see,
    scopes_above,
    source_scopes,
)
from tests.conformance.store.samples import a_connection, a_grant
from tests.fakes.databases import NOW


def permit(name="p", integration="*", subjects=("*",), ceiling=None, actions=(Action.TOKEN,), **more):
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
        **more,
    )


def deny(name="d", **fields):
    return permit(name, effect=Effect.DENY, **fields)


def question(
    integration="crm", subject="user-1", provider="gitlab", connection=None, action=Action.TOKEN, **more
):
    target = Target(integration, provider, subject, connection)
    return PermitQuestion(target, action, **{"at": NOW, **more})


def judge(permits, **asks) -> PermitDecision:
    return decide(permits, question(**asks))


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
    verdict = judge(permits, **asks)
    assert verdict.reason is reason
    assert verdict.allowed is (reason is DecisionReason.ALLOWED)


ALLOWED, DENIED, NO_PERMIT = DecisionReason.ALLOWED, DecisionReason.DENIED, DecisionReason.NO_PERMIT
CON, OTHER_CON = "con_" + "0" * 22, "con_" + "1" * 22
SOON = NOW + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("fields", "asks", "reason"),
    [
        # a subject that ends in * stands for every subject that begins with what is before it
        ({"subjects": ("team-*",)}, {"subject": "team-7"}, ALLOWED),
        ({"subjects": ("team-*",)}, {"subject": "team-"}, ALLOWED),
        ({"subjects": ("team-*",)}, {"subject": "team"}, NO_PERMIT),
        ({"subjects": ("team-*",)}, {"subject": "a-team-7"}, NO_PERMIT),
        ({"subjects": ("team-*",)}, {"subject": "TEAM-7"}, NO_PERMIT),
        ({"subjects": ("team-*",)}, {"subject": None}, NO_PERMIT),
        ({"subjects": ("team-*",)}, {"subject": "*"}, NO_PERMIT),
        ({"subjects": ("té*",)}, {"subject": "te\u0301am"}, NO_PERMIT),  # é in two characters is another text
        ({"subjects": ("t.*",)}, {"subject": "team"}, NO_PERMIT),
        # provider and connection
        ({"provider": "gitlab"}, {}, ALLOWED),
        ({"provider": "gitlab"}, {"provider": "slack"}, NO_PERMIT),
        ({"provider": "gitlab"}, {"provider": None}, NO_PERMIT),
        ({"connections": (CON,)}, {"connection": CON}, ALLOWED),
        ({"connections": (CON,)}, {"connection": OTHER_CON}, NO_PERMIT),
        ({"connections": (CON,)}, {"connection": None}, NO_PERMIT),
        # an end
        ({"expires_at": SOON}, {}, ALLOWED),
        ({"expires_at": SOON}, {"at": SOON}, NO_PERMIT),
        # where from: an IPv4 address may come inside IPv6
        ({"sources": ("10.1.0.0/16",)}, {"address": "10.1.255.255"}, ALLOWED),
        ({"sources": ("10.1.0.0/16",)}, {"address": "10.2.0.0"}, NO_PERMIT),
        ({"sources": ("10.1.0.0/16",)}, {"address": "::ffff:10.1.2.3"}, ALLOWED),
        ({"sources": ("10.1.0.0/16",)}, {"address": "::ffff:a01:203"}, ALLOWED),
        ({"sources": ("10.1.0.0/16",)}, {"address": "::10.1.2.3"}, NO_PERMIT),
        ({"sources": ("::/0",)}, {"address": "10.1.2.3"}, NO_PERMIT),
        ({"sources": ("2001:db8::/32", "10.1.2.3")}, {"address": "2001:DB8:0::1"}, ALLOWED),
        ({"sources": ("0.0.0.0/0", "::/0")}, {"address": None}, NO_PERMIT),
        ({"sources": ("0.0.0.0/0", "::/0")}, {"address": "010.1.2.3"}, NO_PERMIT),
        ({"sources": ("no network",)}, {"address": "10.1.2.3"}, NO_PERMIT),
        # what a token can do beyond the request
        ({"exact_scopes": True}, {"scopes": ("read",)}, ALLOWED),
        (
            {"exact_scopes": True},
            {"scopes": ("read", "write"), "excess": ("write",)},
            DecisionReason.TOKEN_ABOVE_REQUEST,
        ),
        ({}, {"scopes": ("read", "write"), "excess": ("write",)}, ALLOWED),
    ],
)
def test_an_allow_fits_what_it_names_and_nothing_that_is_not_known(fields, asks, reason):
    assert judge([permit(**fields)], **asks).reason is reason


@pytest.mark.parametrize(
    ("fields", "asks", "reason"),
    [
        ({}, {}, DENIED),
        ({"integration": "erp"}, {}, ALLOWED),
        ({"subjects": ("user-1",)}, {}, DENIED),
        ({"subjects": ("user-10", "user-1*")}, {}, DENIED),
        ({"subjects": ("user-10",)}, {}, ALLOWED),
        ({"connections": (CON,)}, {"connection": CON}, DENIED),
        ({"connections": (CON,)}, {"connection": OTHER_CON}, ALLOWED),
        ({"connections": (CON,)}, {}, ALLOWED),  # a connection that isn't there yet
        ({"actions": (Action.CONNECT,)}, {}, ALLOWED),
        ({"expires_at": SOON}, {}, DENIED),
        ({"expires_at": NOW}, {}, ALLOWED),
        # some scopes
        ({"scopes": ("write",)}, {}, ALLOWED),
        ({"scopes": ("write",)}, {"scopes": ("read",)}, ALLOWED),
        ({"scopes": ("write", "admin")}, {"scopes": ("read", "write")}, DENIED),
        # a request for a whole that holds what is denied
        ({"integration": "erp"}, {"integration": None, "provider": None, "subject": None}, DENIED),
        ({"subjects": ("user-2",)}, {"subject": None}, DENIED),
        ({"connections": (CON,)}, {"subject": None}, DENIED),
        ({"provider": "slack"}, {"provider": None}, DENIED),
        # in error: it can't be told whether the caller is in the network
        ({"sources": ("10.9.0.0/16",)}, {"address": "10.1.2.3"}, ALLOWED),
        ({"sources": ("10.9.0.0/16",)}, {"address": "::ffff:10.9.2.3"}, DENIED),
        ({"sources": ("10.9.0.0/16",)}, {"address": None}, DENIED),
        ({"sources": ("10.9.0.0/16",)}, {"address": "unix:"}, DENIED),
        ({"sources": ("no network",)}, {"address": "10.1.2.3"}, DENIED),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_deny_wins_in_any_order_and_in_doubt(fields, asks, reason, turned):
    permits = [permit("z"), deny(**fields), permit("a")]
    found = judge(permits[::-1] if turned else permits, **asks)
    assert found.reason is reason
    assert found.permit_name == ("d" if reason is DENIED else "a")


def test_a_deny_names_the_scopes_it_refuses():
    assert judge([permit(), deny(scopes=("write",))], scopes=("read", "write")).refused_scopes == ("write",)


def test_an_observing_deny_refuses_nothing_and_is_named():
    observing = deny("seen", mode=EnforcementMode.OBSERVE)
    found = judge([permit(), observing])
    assert (found.allowed, found.observed) == (True, ("seen",))
    refused = judge([permit(), observing, deny()])
    assert (refused.permit_name, refused.observed) == ("d", ("seen",))
    assert may_see([permit(), observing], question().target, NOW, None)


def test_what_is_denied_altogether_is_not_seen():
    target = question(connection=CON).target
    both = permit(actions=(Action.TOKEN, Action.CONNECT))
    assert may_see([both, deny()], target, NOW, None)
    assert may_see([permit(), deny(scopes=("write",))], target, NOW, None)
    assert not may_see([permit(), deny()], target, NOW, None)
    assert not may_see([both, deny(actions=tuple(Action), connections=(CON,))], target, NOW, None)


def test_a_verdict_holds_until_the_permit_that_decided_ends():
    assert judge([permit("a", expires_at=SOON), permit("b")]).valid_until == SOON
    assert judge([permit("a"), permit("b", expires_at=SOON)]).valid_until is None
    assert judge([permit(), deny(expires_at=SOON)]).valid_until == SOON
    assert judge([permit(ceiling=(), expires_at=SOON)], scopes=("read",)).valid_until is None


def test_permits_do_not_add_up():
    """Reading by one permit and writing by another isn't both at once."""
    permits = [permit("a", ceiling=("read",)), permit("b", ceiling=("write",))]
    both = judge(permits, scopes=("read", "write"))
    assert both.reason is DecisionReason.SCOPE_ABOVE_CEILING
    one = judge(permits, scopes=("write",))
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
    assert may_exchange([given], SOURCE, ("read",), NOW).reason is reason


def test_without_a_permit_there_is_no_exchange_even_of_a_token_that_can_do_nothing():
    assert not may_exchange([], SOURCE, (), NOW).allowed
