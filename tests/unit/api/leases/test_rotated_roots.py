"""Leases go on while the root that wraps their keys is replaced and retired."""

from datetime import timedelta

from evergrant_server.core.access import Action
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.crypto import KeyPurpose, Role
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.conformance.store.keys.test_root_rotation import of_root, rotated
from tests.fakes.api import Api
from tests.fakes.key_service import ScriptedKeys, wrapped_by

LONG = timedelta(hours=1)


async def test_a_judged_pair_is_leased_to_before_and_after_its_root_is_retired(api: Api):
    keys, connection_and_key = ScriptedKeys(), await api.active_for("sync", Action.TOKEN)
    key = connection_and_key[1]
    await wrapped_by(keys, api.worker)
    stores = {Role.API: api.parts.store, Role.WORKER: api.worker}
    keepers = [RootKeeper(store, [keys.of(role)], LONG) for role, store in stores.items()]
    for keeper in keepers:
        await keeper.begin()
    pairs = api.app.state.judged_pairs
    for _ in range(3):
        assert (await api.lease(key)).json()["access_token"] == "at-1"
    assert pairs.leased == 2
    before = api.parts.ring.current_root_id(KeyPurpose.LEASE)
    moved = await rotated(api.worker, keys, keepers, of_root(KeyPurpose.LEASE), RotationStep.COUNT)
    assert (await api.lease(key)).json()["access_token"] == "at-1", "what is cached still opens"
    retired = await rotated(api.worker, keys, keepers, of_root(KeyPurpose.LEASE, progress=moved))
    assert retired.done
    assert before not in api.parts.ring.root_ids()[KeyPurpose.LEASE]
    leased = pairs.leased
    for _ in range(3):
        answer = await api.lease(key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["access_token"] == "at-1"
    assert pairs.leased == leased + 2, "the first one was judged anew, and its row read again"
    for keeper in keepers:
        await keeper.close()
