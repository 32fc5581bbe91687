"""The key file, which needs no service."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from evergrant_server.crypto import keyfile
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyring import KeyRing, Role
from tests.fakes.key_services import acts
from tests.fakes.key_services.world import World


class KeyFileWorld(World):
    BACKEND = acts.FILE

    def __init__(self, folder: Path) -> None:
        self.url, self.environment, self.secrets = "file", {}, ()
        self.key_file = folder / "keys.json"
        self._ring = KeyRing.create(self.key_file, Role.OPERATOR)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        yield cls(folder)

    @asynccontextmanager
    async def exported(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """The purpose isn't in the file."""
        file = keyfile.read(self.key_file)
        async with self._replaced_by(
            replace(file, purposes={name: roots for name, roots in file.purposes.items() if name != purpose})
        ):
            yield

    @asynccontextmanager
    async def other_file(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        elsewhere = self.key_file.with_name("elsewhere.json")
        KeyRing.create(elsewhere, Role.OPERATOR)
        async with self._replaced_by(keyfile.read(elsewhere)):
            elsewhere.unlink()
            yield

    @asynccontextmanager
    async def missing(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        aside = self.key_file.with_name("aside.json")
        os.rename(self.key_file, aside)
        try:
            yield
        finally:
            os.rename(aside, self.key_file)

    @asynccontextmanager
    async def _replaced_by(self, file: keyfile.KeyFile) -> AsyncIterator[None]:
        before = keyfile.read(self.key_file)
        keyfile.rewrite(self.key_file, file)
        try:
            yield
        finally:
            keyfile.rewrite(self.key_file, before)
