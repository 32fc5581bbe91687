"""A worker of the proof: before each page of a rotation it tells the proof, and waits until it may go on.

`python -m tests.faults.rotation.worker`; the product contains none of it.
"""

import asyncio
import json
import os
from contextlib import suppress

from activities.keys.steps import KeyRotation
from evergrant_server.cli.app import main
from evergrant_server.core.messages.keys import KeyRotationProgress

GATE = "EVERGRANT_TEST_GATE"  # the path of the proof's socket
_advance = KeyRotation.advance


async def _advance_through_the_gate(self: KeyRotation, progress: KeyRotationProgress) -> KeyRotationProgress:
    passage = {
        "pid": os.getpid(),
        "kind": self._call.kind,
        "step": progress.step,
        "waits_for": progress.waits_for,
        "passes": progress.passes,
    }
    with suppress(OSError):  # the proof is over
        reader, writer = await asyncio.open_unix_connection(os.environ[GATE])
        writer.write(json.dumps(passage).encode() + b"\n")
        await reader.read()
        writer.close()
    return await _advance(self, progress)


if __name__ == "__main__":
    KeyRotation.advance = _advance_through_the_gate
    main(["worker"])
