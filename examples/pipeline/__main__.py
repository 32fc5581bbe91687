"""`python -m examples.pipeline worker` runs the worker; `… run` runs one sync and prints its report."""

import argparse
import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from evergrant import EvergrantError
from evergrant.temporal import EvergrantPlugin, connection_workflow_id
from temporalio.client import Client, WorkflowFailureError
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError
from temporalio.worker import Worker

from examples.pipeline.activities import fetch_contacts
from examples.pipeline.messages import TASK_QUEUE, SyncRequest
from examples.pipeline.workflow import SyncContacts


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.pipeline", description=__doc__)
    parser.add_argument("--temporal", metavar="HOST:PORT", help="default: TEMPORAL_ADDRESS, or `dev`'s")
    parser.add_argument("--namespace", help="default: TEMPORAL_NAMESPACE")
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("worker", help="run the worker until it is interrupted")
    worker.add_argument("--evergrant-url", help="default: EVERGRANT_URL")
    worker.add_argument("--api-key-file", type=Path, help="default: EVERGRANT_API_KEY[_FILE]")
    run = commands.add_parser("run", help="run one sync and print what it read as JSON")
    for name in ("integration", "subject", "connection", "resource"):
        value = os.environ.get(f"PIPELINE_{name.upper()}")
        run.add_argument(f"--{name}", default=value, required=value is None, help=f"PIPELINE_{name.upper()}")
    run.add_argument("--tenant", default=os.environ.get("PIPELINE_TENANT", "default"))
    run.add_argument("--id", default=f"sync-contacts-{uuid4()}", help="workflow id")
    return parser


async def connect(options: argparse.Namespace) -> Client:
    """Temporal as TEMPORAL_* and its profile say, unless an option says otherwise."""
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "127.0.0.1:8482")
    if options.temporal:
        config["target_host"] = options.temporal
    if options.namespace:
        config["namespace"] = options.namespace
    return await Client.connect(**config)


async def work(options: argparse.Namespace) -> None:
    """Run the worker until SIGINT or SIGTERM, then finish running activities."""
    key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else None
    worker = Worker(
        await connect(options),
        task_queue=TASK_QUEUE,
        workflows=[SyncContacts],
        activities=[fetch_contacts],
        plugins=[EvergrantPlugin(options.evergrant_url, key)],
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(worker.run())
    stopping = asyncio.create_task(stop.wait())
    print("pipeline worker is running", flush=True)
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await worker.shutdown()
    stopping.cancel()
    await running


async def run(options: argparse.Namespace) -> None:
    client = await connect(options)
    order = SyncRequest(
        connection=connection_workflow_id((options.tenant, options.connection)),
        integration=options.integration,
        subject=options.subject,
        resource_url=options.resource,
    )
    report = await client.execute_workflow(SyncContacts.run, order, id=options.id, task_queue=TASK_QUEUE)
    print(json.dumps({"workflow_id": options.id, **asdict(report)}))


def main() -> int:
    options = arguments().parse_args()
    try:
        asyncio.run(work(options) if options.command == "worker" else run(options))
    except WorkflowFailureError as error:
        print(f"pipeline: {error.cause}", file=sys.stderr)
        return 1
    except (EvergrantError, OSError, RPCError, RuntimeError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 1
    return 0


def exit_process(status: int) -> NoReturn:
    """Flush the streams and end the process without the interpreter's shutdown.

    Threads of temporalio 1.35.0 may call into the interpreter while it shuts down, which aborts the
    process (seen on Python 3.11.7). This skips `atexit` functions: the pipeline has none.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    exit_process(main())
