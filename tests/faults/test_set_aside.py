"""Tokens that a definition can't read: kept, never asked for twice, and read once it is repaired."""

from pathlib import Path

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.provider import RefreshRules, Rotation
from tests.fakes.installation import Installation
from tests.fakes.scripted_provider import ScriptedProvider, ok
from tests.faults.test_review_takeover import Activities

STRICT = RefreshRules(rotation=Rotation.STRICT)


async def test_a_yes_that_nobody_can_read_is_set_aside_and_read_once_the_definition_is_repaired(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """The provider has rotated: what it said holds the only good token, and must not be dropped."""
    connection = await place.connect(idp)
    here, elsewhere = (Activities(place, (idp.allowance,), tmp_path / it) for it in ("here", "elsewhere"))
    idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is Code.REPLY_UNREADABLE
    asked = idp.count("token")
    again = [await it.refresh(connection, 1, token_over=True) for it in (here, elsewhere)]
    assert [it.failure for it in again] == [Code.REPLY_UNREADABLE] * 2
    assert idp.count("token") == asked, "a second use would end what was made of the first"
    said = await place.actions(connection)
    assert await here.replayer.look_again() == 0
    assert await place.actions(connection) == said, "nothing new is known"
    spec = place.parts.registry.get("generic")
    readable = spec.model_copy(
        update={"response": spec.response.model_copy(update={"bearer_token_types": ("of another kind",)})}
    )
    place.parts.registry._specs["generic"] = readable
    assert await here.replayer.look_again() == 1
    assert (await place.row(connection)).generation == 2
    assert (await place.row(connection)).state is State.ACTIVE
    assert list((tmp_path / "here").glob("*/*.set-aside")) == []


async def test_a_revocation_names_the_tokens_that_nobody_could_read(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, STRICT)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    idp.script(ok(token_type="of another kind"))
    assert (await here.refresh(connection, 1)).failure is Code.REPLY_UNREADABLE
    (aside,) = (tmp_path / "here").glob("*/*.set-aside")
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is State.REVOKED)
    (said,) = await place.records(AuditAction.REVOKED)
    assert said.detail["answer_lost"] == aside.stem
    assert await here.replayer.look_again() == 1
    assert not aside.exists(), "its keys are destroyed"
