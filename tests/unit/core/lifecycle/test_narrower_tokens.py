"""A narrower token comes beside the main one: the workflow's times are still those of the main one."""

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.grants import token_ends_at
from evergrant_server.core.messages.connection import ConnectionState, EventKind, RefreshReason
from tests.unit.core.lifecycle.steps import ACTIVE, HOUR, MINUTE, NOW, granted, step, timer_of

KNOWN = ACTIVE.model_copy(update={"installed_at": NOW, "policy": "warm"})


def asked(state: ConnectionState, seen: int) -> Command:
    reason = RefreshReason.COMMAND
    brings = {"seen_generation": seen, "refresh_reason": reason, "scopes": ("read",)}
    return step(state, EventKind.REFRESH_REQUESTED, NOW + MINUTE, **brings).command


def test_it_is_requested_once_for_all_who_have_seen_a_generation():
    assert asked(KNOWN, 3) is Command.REFRESH
    assert asked(KNOWN, 2) is Command.NOTHING
    failing = KNOWN.model_copy(update={"retry_at": NOW + HOUR, "reason": ErrorCode.PROVIDER_ERROR})
    assert asked(failing, 3) is Command.NOTHING


def test_the_main_token_ends_when_it_did():
    result = granted(4, access_generation=3)
    after = step(KNOWN, EventKind.REFRESH_ENDED, NOW + 30 * MINUTE, result=result).state
    assert (after.generation, after.installed_at) == (4, NOW)
    assert token_ends_at(after) == NOW + HOUR
    assert timer_of(after) == timer_of(KNOWN)


@pytest.mark.parametrize("access_generation", [None, 4])
def test_a_main_token_that_is_new_to_the_workflow_begins_now(access_generation: int | None):
    result = granted(5, access_generation=access_generation)
    after = step(KNOWN, EventKind.REFRESH_ENDED, NOW + MINUTE, result=result).state
    assert after.installed_at == NOW + MINUTE


def test_a_refused_scope_changes_nothing():
    result = granted().model_copy(update={"unchanged": True})
    assert step(KNOWN, EventKind.REFRESH_ENDED, result=result).state == KNOWN
