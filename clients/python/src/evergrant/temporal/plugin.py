"""`EvergrantPlugin`: one line in the worker, or in the Temporal client that the worker uses."""

from collections.abc import Awaitable, Callable
from typing import Unpack

from temporalio.plugin import SimplePlugin
from temporalio.worker import Worker, WorkerConfig

from evergrant.async_client import AsyncEvergrant
from evergrant.options import ClientOptions
from evergrant.sync_client import Evergrant
from evergrant.temporal.interceptor import LeaseInterceptor
from evergrant.temporal.leases import WorkerClients


class EvergrantPlugin(SimplePlugin):
    """Gives a worker's activities their leases, and refuses tokens in what they send to Temporal.

    Takes the arguments of `Evergrant`, and opens its clients when a worker runs: a process that only
    starts workflows needs no API key. Pass it to the Temporal client or to the worker; given to
    both, it still acts once. It leaves the data converter alone.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  # temporalio leaves a Callable open
            "evergrant.EvergrantPlugin", interceptors=[LeaseInterceptor(self._open_clients)]
        )
        self._connect = lambda: WorkerClients(
            AsyncEvergrant(url, api_key, **options), Evergrant(url, api_key, **options)
        )
        self._clients: WorkerClients | None = None
        self._running = 0

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        configured = super().configure_worker(config)
        if "interceptors" in configured:
            configured["interceptors"] = list(dict.fromkeys(configured["interceptors"]))
        return configured

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """Keep the clients open while any worker runs. Raises BadRequest for missing settings."""
        if self._clients is None:
            self._clients = self._connect()
        self._running += 1
        try:
            await super().run_worker(worker, next)
        finally:
            self._running -= 1
            if self._running == 0:
                await self._close()

    async def _close(self) -> None:
        clients, self._clients = self._open_clients(), None
        clients.blocking.close()
        await clients.asyncio.aclose()

    def _open_clients(self) -> WorkerClients:
        if self._clients is None:
            raise RuntimeError("the worker of this activity isn't running")
        return self._clients
