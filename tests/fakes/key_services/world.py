"""A running key service, as the conformance suite sees it: what an operator sets, and its acts as methods."""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Self

from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.key_services.acts import Act, Backend
from tests.fakes.patience import PATIENCE_S

POLICIES = Path(__file__).parents[3] / "deploy" / "key-services"


class World(ABC):
    """A key service with a key for each purpose."""

    BACKEND: ClassVar[Backend]

    url: str  # of the setting
    environment: dict[str, str]  # what the vendor's library reads
    secrets: tuple[str, ...]  # which no failure may quote
    key_file: Path = Path("/nowhere/keys.json")

    @classmethod
    @abstractmethod
    def running(cls, folder: Path) -> AbstractAsyncContextManager[Self]:
        """Start the service; skips the test where it isn't to be had."""

    def opened(self, limit_s: float = PATIENCE_S) -> BoundKeyService:
        """As a process opens it, with the environment in place; a busy machine is given time."""
        return open_key_service(self.url, self.key_file, limit_s)

    @staticmethod
    def of(backend: Backend) -> "type[World]":
        module, _, name = backend.world.partition(".")
        return getattr(import_module(f"tests.fakes.key_services.{module}"), name)

    def acting(self, act: Act, purpose: ServicePurpose) -> AbstractAsyncContextManager[None]:
        return getattr(self, act.method)(purpose, *act.arguments)
