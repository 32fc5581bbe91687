"""An exchange is judged as a lease of its source would be."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.policy import DecisionReason, may_exchange, source_scopes
from tests.conformance.store.samples import a_connection, a_grant
from tests.unit.policy.test_permits import permit

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
