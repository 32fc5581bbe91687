"""Every entry's refusals through the whole path: activity, store and schedule name who repairs them.

One worker and one server for the whole catalogue; the time between two tries is skipped.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.integrations import Integration
from evergrant_server.core.single_use.recurring_errors import RECURS_FOR, RECURS_FOR_ALONE
from providers.definition.parsing import parse_yaml
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from tests.conformance.providers.exchanges import Exchange, as_read
from tests.fakes.platform.skipped_time import LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Call, ScriptedServer

VECTORS = Path(__file__).parent / "vectors"
GENERIC = {"status": 400, "json": {"error": "invalid_grant"}}  # RFC 6749 section 5.2, where no vector has one
NEVER_READ = {"status": 400, "json": {"error": "of_no_definition"}}
STATED_TIME = RECURS_FOR + timedelta(hours=16)  # docs/protocol.md, "An error that keeps coming back"
STATED_TIME_ALONE = RECURS_FOR_ALONE + timedelta(hours=15)


class OneReply(ScriptedServer):
    """Answers every request with the same reply of a vector."""

    reply: dict[str, Any] = GENERIC

    def _act(self, call: Call) -> Any:
        read = as_read(self.reply)
        return read.status, read.headers, read.body


class Catalogue:
    """The catalogue on one server, and a worker that uses it."""

    def __init__(self, place: LoneWorker, server: OneReply, registry: Registry) -> None:
        self.place, self.server, self.registry = place, server, registry

    def exchanges(self) -> Iterator[Exchange]:
        """The entries whose subject consents in a browser, with their vectors."""
        for name in self.registry.names():
            vector = parse_yaml((VECTORS / f"{name}.yaml").read_text(encoding="utf-8"))
            exchange = Exchange(self.registry.get(name), vector)
            if exchange.speaks_code:
                yield exchange

    async def integration(self, exchange: Exchange) -> Integration:
        """One whose endpoints are this server's."""
        return await self.place.integration(
            name=f"{exchange.spec.name}-{len(self.server.calls)}",
            provider=exchange.spec.name,
            params=exchange.integration.params,
            endpoints=exchange.endpoints_at(self.server.origin),
            refresh=exchange.spec.refresh_rules(),
        )

    async def connected(self, integration: Integration, exchange: Exchange) -> Connection:
        """A connection whose access token outlives the test: some are exchanged for the next ones."""
        ends = self.place.clock.now() + timedelta(days=60)
        return await self.place.connected(integration, metadata=exchange.facts, expires_at=ends)

    async def refreshed(self, exchange: Exchange, reply: dict[str, Any]) -> Connection:
        """A connection beside one that works within the hour, refreshed until the stated time has passed."""
        integration = await self.integration(exchange)
        await self.place.others_are_refreshed(integration)
        connection = await self.connected(integration, exchange)
        self.server.reply = reply
        return await self.place.refresh_until(connection, STATED_TIME)


@asynccontextmanager
async def the_catalogue(folder: Path) -> AsyncIterator[Catalogue]:
    async with OneReply("", None) as server:
        registry = Registry.load()
        registry._specs |= {name: moved(registry.get(name), server.origin) for name in registry.names()}
        async with lone_worker(folder, server.allowance, registry=registry) as place:
            yield Catalogue(place, server, registry)


def moved(spec: ProviderSpec, origin: str) -> ProviderSpec:
    """The definition with the URLs of its exchanges of access tokens on this server, and a plain secret."""
    rules = {"refresh": spec.refresh, "post_token_exchange": spec.post_token_exchange}
    there = {
        name: rule.model_copy(update={"url": rule.url.replace("https://", f"{origin}/")})
        for name, rule in rules.items()
        if rule is not None and rule.url is not None
    }
    return spec.model_copy(update={**there, "client_secret_generator": None})


def refusals(exchange: Exchange, *of: str) -> list[dict[str, Any]]:
    return [it for it in exchange.vector["refusals"] if it["of"] in of]


async def test_a_dead_refresh_token_is_the_subjects_to_repair(tmp_path: Path):
    wrong: dict[str, Any] = {}
    played = 0
    async with the_catalogue(tmp_path) as all_of_it:
        for exchange in all_of_it.exchanges():
            if not exchange.spec.refresh_supported:
                continue
            dead = [it["reply"] for it in refusals(exchange, "dead_token")] or [GENERIC]
            for reply in dead:
                row = await all_of_it.refreshed(exchange, reply)
                repairer = FAILURES[row.reason].repairer if row.reason else None
                played += 1
                if (row.state, repairer) != (LifecycleState.NEEDS_REAUTH, Repairer.SUBJECT):
                    wrong[f"{exchange.spec.name}: {reply}"] = (row.state, row.last_failure)
    assert wrong == {}
    assert played > 300


async def test_a_dead_code_is_the_subjects_where_nothing_is_refreshed(tmp_path: Path):
    wrong: dict[str, Any] = {}
    played = 0
    async with the_catalogue(tmp_path) as all_of_it:
        for exchange in all_of_it.exchanges():
            if exchange.spec.refresh_supported:
                continue
            dead = [it["reply"] for it in refusals(exchange, "dead_code", "dead_token")] or [GENERIC]
            for reply in dead:
                integration = await all_of_it.integration(exchange)
                all_of_it.server.reply = reply
                result, consent = await all_of_it.place.exchange(integration, exchange.facts)
                repairer = FAILURES[result.failure].repairer if result.failure else None
                played += 1
                if (consent.status, repairer) != (ConsentStatus.FAILED, Repairer.SUBJECT):
                    wrong[f"{exchange.spec.name}: {reply}"] = (consent.status, result.failure)
    assert wrong == {}
    assert played > 30


async def test_wrong_client_credentials_are_the_admins_to_repair(tmp_path: Path):
    wrong: dict[str, Any] = {}
    played = 0
    async with the_catalogue(tmp_path) as all_of_it:
        for exchange in all_of_it.exchanges():
            for refusal in refusals(exchange, "client"):
                sourced = not str(refusal["source"]).startswith("unverified")
                if not exchange.spec.refresh_supported or not sourced or refusal.get("undecidable"):
                    continue
                connection = await all_of_it.connected(await all_of_it.integration(exchange), exchange)
                all_of_it.server.reply = refusal["reply"]
                result = await all_of_it.place.refresh(connection)
                repairer = FAILURES[result.failure].repairer if result.failure else None
                played += 1
                if repairer is not Repairer.INTEGRATION_ADMIN:
                    wrong[f"{exchange.spec.name}: {refusal['reply']}"] = result.failure
    assert wrong == {}
    assert played > 80


def family_of(spec: ProviderSpec) -> tuple[object, ...]:
    """How its next tokens are requested."""
    exchanged = (spec.refreshes_with_access_token, spec.post_token_exchange is not None)
    return *exchanged, spec.discovery, spec.client_auth, spec.refresh_rules().rotation, spec.dpop


async def test_an_error_of_no_definition_ends_within_the_stated_time_in_each_family_of_flows(tmp_path: Path):
    ended: dict[tuple[object, ...], Any] = {}
    async with the_catalogue(tmp_path) as all_of_it:
        place = all_of_it.place
        for exchange in all_of_it.exchanges():
            spec = exchange.spec
            if not spec.refresh_supported or family_of(spec) in ended:
                continue
            row = await all_of_it.refreshed(exchange, NEVER_READ)
            alone = await all_of_it.connected(await all_of_it.integration(exchange), exchange)
            last = await place.refresh_until(alone, STATED_TIME_ALONE)
            ended[family_of(spec)] = {row.reason, last.reason}
        minted = next(it for it in all_of_it.exchanges() if "client_credentials" in it.spec.auth_modes)
        ours = await place.connected(await all_of_it.integration(minted))
        async with place.store.write() as tx:
            own = ours.model_copy(update={"flow": Flow.CLIENT_CREDENTIALS})
            await tx.connections.replace_names(own, expected=ours.revision)
        assert (await place.refresh_until(ours, STATED_TIME_ALONE)).state is LifecycleState.ACTIVE
    assert [it for it, reasons in ended.items() if reasons != {ErrorCode.REFRESH_KEEPS_FAILING}] == []
    assert len(ended) > 5
