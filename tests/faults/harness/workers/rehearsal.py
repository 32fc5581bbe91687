"""The fork server's first two orders: imports, statements and keys are warm when the cases begin."""

from pathlib import Path

from evergrant_server.core.integrations import Rotation
from tests.faults.harness.database import HarnessDatabase
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.table.case_run import Case, CaseRun, Layout
from tests.faults.harness.table.scenarios import SCENARIOS
from tests.faults.harness.workers.handles import ForkServer
from tests.faults.harness.workers.limits import TOKEN_S


async def rehearse(ground: HarnessDatabase, warm: ForkServer, folder: Path) -> None:
    """Carry out a refresh and a code exchange in the fork server itself."""
    async with StrictProvider(Rotation.STRICT, TOKEN_S) as idp:
        walks = [
            CaseRun(Case(it, None, Layout.ONE, Rotation.STRICT), ground, warm, folder / "rehearsal", idp)
            for it in SCENARIOS[:2]
        ]
        hand = None
        for walk in walks:
            hand = await walk.rehearse(hand)
        assert hand is not None
        await warm.rehearsed(hand)
