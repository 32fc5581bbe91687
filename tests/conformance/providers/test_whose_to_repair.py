"""The catalogue's refusals through the whole path: activity, store and schedule name who repairs them.

One worker and one server for the whole catalogue; the time between two tries is skipped. test_vectors.py
reads each refusal of each entry; here one of those that are read as the same failure, in the same family of
flows, stands for the others, and `make soak` plays each.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.recurring_errors import RECURS_FOR, RECURS_FOR_ALONE
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from tests.conformance.providers.agreement import failure_or_fail
from tests.conformance.providers.exchanges import Exchange, as_read, read_vector, requested_by
from tests.fakes.platform.skipped_time import LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Call, ScriptedServer

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
    """The catalogue on one server, and a worker that uses it. `played` has the kinds of refusals so far."""

    def __init__(self, place: LoneWorker, server: OneReply, registry: Registry, whole: bool) -> None:
        self.place, self.server, self.registry, self._whole = place, server, registry, whole
        self.played: Counter[tuple[object, ...]] = Counter()

    def is_due(self, exchange: Exchange, refusal: dict[str, Any], at: str) -> bool:
        """Whether this refusal is played: the first of its kind, or each."""
        failure = failure_or_fail(exchange.file, partial(exchange.refusal, {**refusal, "at": at}))
        rules = exchange.spec.refresh_rules()
        kind = (family_of(exchange.spec), rules, at, failure.code, failure.retry_after is None)
        self.played[kind] += 1
        return self._whole or self.played[kind] == 1

    def exchanges(self) -> Iterator[Exchange]:
        """The entries whose subject consents in a browser, with their vectors."""
        for name in self.registry.names():
            exchange = Exchange(self.registry.get(name), read_vector(name))
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
        """A connection refreshed until the stated time has passed, beside one that works within the hour: of
        no importance where the first refusal is the end."""
        integration = await self.integration(exchange)
        connection = await self.connected(integration, exchange)
        self.server.reply = reply
        await self.place.refresh(connection)
        if (row := await self.place.row(connection)).state is not LifecycleState.ACTIVE:
            return row
        await self.place.others_are_refreshed(integration)
        return await self.place.refresh_until(connection, STATED_TIME)

    async def answered(self, exchange: Exchange, refusal: dict[str, Any]) -> GrantResult:
        """What a new connection's request, the one that the refusal is about, ends as."""
        integration = await self.integration(exchange)
        if requested_by(refusal) == "exchange":
            self.server.reply = refusal["reply"]
            return (await self.place.exchange(integration, exchange.facts))[0]
        connection = await self.connected(integration, exchange)
        self.server.reply = refusal["reply"]
        return await self.place.refresh(connection)


@pytest.fixture(params=["each kind", pytest.param("each", marks=pytest.mark.soak)])
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether each refusal is played."""
    return request.param == "each"


@asynccontextmanager
async def the_catalogue(folder: Path, whole: bool = False) -> AsyncIterator[Catalogue]:
    async with OneReply("", None) as server:
        registry = Registry.load()
        registry._specs |= {name: moved(registry.get(name), server.origin) for name in registry.names()}
        async with lone_worker(folder, server.allowance, registry=registry) as place:
            yield Catalogue(place, server, registry, whole)


def moved(spec: ProviderSpec, origin: str) -> ProviderSpec:
    """The definition with the URLs of its exchanges of access tokens on this server, and a plain secret."""
    rules = {"refresh": spec.refresh, "post_token_exchange": spec.post_token_exchange}
    there = {
        name: rule.model_copy(update={"url": rule.url.replace("https://", f"{origin}/")})
        for name, rule in rules.items()
        if rule is not None and rule.url is not None
    }
    return spec.model_copy(update={**there, "client_secret_generator": None})


def refusals(exchange: Exchange, at: str, *of: str) -> list[dict[str, Any]]:
    """The vector's refusals of these kinds to such a request, if the entry sends it."""
    if at == "refresh" and not exchange.spec.refresh_supported:
        return []
    return [it for it in exchange.vector["refusals"] if it["of"] in of and requested_by(it) == at]


def decidable(refusals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [it for it in refusals if not it.get("undecidable")]


def repairer_of(failure: ErrorCode | None) -> Repairer | None:
    return FAILURES[failure].repairer if failure else None


async def test_a_refused_refresh_token_is_the_subjects_to_repair(tmp_path: Path, whole: bool):
    """A dead one; also where the subject has to do something else first, or their administrator has."""
    wrong: dict[str, Any] = {}
    async with the_catalogue(tmp_path, whole) as all_of_it:
        for exchange in all_of_it.exchanges():
            dead = refusals(exchange, "refresh", "dead_token")
            dead += decidable(refusals(exchange, "refresh", "subject"))
            if not dead and exchange.spec.refresh_supported:
                dead = [{"reply": GENERIC}]
            for refusal in dead:
                if not all_of_it.is_due(exchange, refusal, "refresh"):
                    continue
                row = await all_of_it.refreshed(exchange, refusal["reply"])
                if (row.state, repairer_of(row.reason)) != (LifecycleState.NEEDS_REAUTH, Repairer.SUBJECT):
                    wrong[f"{exchange.spec.name}: {refusal['reply']}"] = (row.state, row.last_failure)
    assert wrong == {}
    assert all_of_it.played.total() > 450


async def test_a_refused_code_is_the_subjects_to_repair(tmp_path: Path, whole: bool):
    wrong: dict[str, Any] = {}
    async with the_catalogue(tmp_path, whole) as all_of_it:
        for exchange in all_of_it.exchanges():
            dead = decidable(refusals(exchange, "exchange", "dead_code", "subject", "dead_token"))
            if not dead and not exchange.spec.refresh_supported:
                dead = [{"reply": GENERIC}]
            for refusal in dead:
                if not all_of_it.is_due(exchange, refusal, "exchange"):
                    continue
                integration = await all_of_it.integration(exchange)
                all_of_it.server.reply = refusal["reply"]
                result, consent = await all_of_it.place.exchange(integration, exchange.facts)
                ended = (consent.status, repairer_of(result.failure))
                if ended != (ConsentStatus.FAILED, Repairer.SUBJECT):
                    wrong[f"{exchange.spec.name}: {refusal['reply']}"] = (consent.status, result.failure)
    assert wrong == {}
    assert all_of_it.played.total() > 100


async def test_a_refused_client_is_the_admins_to_repair(tmp_path: Path, whole: bool):
    wrong: dict[str, Any] = {}
    async with the_catalogue(tmp_path, whole) as all_of_it:
        for exchange in all_of_it.exchanges():
            refused = refusals(exchange, "refresh", "client") + refusals(exchange, "exchange", "client")
            for refusal in decidable(refused):
                if str(refusal["source"]).startswith("unverified"):
                    continue
                if not all_of_it.is_due(exchange, refusal, requested_by(refusal)):
                    continue
                result = await all_of_it.answered(exchange, refusal)
                if repairer_of(result.failure) is not Repairer.INTEGRATION_ADMIN:
                    wrong[f"{exchange.spec.name}: {refusal['reply']}"] = result.failure
    assert wrong == {}
    assert all_of_it.played.total() > 200


async def test_an_error_that_passes_is_left_to_time(tmp_path: Path, whole: bool):
    """Also one that looks terminal: no grant ends by it."""
    wrong: dict[str, Any] = {}
    async with the_catalogue(tmp_path, whole) as all_of_it:
        for exchange in all_of_it.exchanges():
            for refusal in decidable(refusals(exchange, "refresh", "passing")):
                if not all_of_it.is_due(exchange, refusal, "refresh"):
                    continue
                result = await all_of_it.answered(exchange, refusal)
                if repairer_of(result.failure) is not Repairer.TIME:
                    wrong[f"{exchange.spec.name}: {refusal['reply']}"] = result.failure
    assert wrong == {}
    assert all_of_it.played.total() > 90


LOOP = "AADSTS50196: The server terminated an operation because it encountered a client request loop."
IN_PROCESS = "Token request is already being processed"


async def test_an_invalid_grant_that_passes_is_left_to_time(tmp_path: Path):
    """Microsoft's throttle of a client, and Salesforce's refusal of a second refresh at the same moment."""
    async with the_catalogue(tmp_path) as all_of_it:
        exchanges = {exchange.spec.name: exchange for exchange in all_of_it.exchanges()}
        for name, description in (("microsoft", LOOP), ("salesforce", IN_PROCESS)):
            said = {"error": "invalid_grant", "error_description": description}
            integration = await all_of_it.integration(exchanges[name])
            connection = await all_of_it.connected(integration, exchanges[name])
            all_of_it.server.reply = {"status": 400, "json": said}
            row = await all_of_it.place.refresh_until(connection, timedelta(hours=6))
            assert (row.state, repairer_of(row.last_failure)) == (LifecycleState.ACTIVE, Repairer.TIME)


def family_of(spec: ProviderSpec) -> tuple[object, ...]:
    """How its next tokens are requested."""
    exchanged = (spec.refreshes_with_access_token, spec.post_token_exchange is not None)
    return *exchanged, spec.discovery, spec.client_auth, spec.refresh_rules().rotation, spec.dpop


@pytest.mark.soak
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
            ended[family_of(spec)] = (row.reason, last.reason)
        minted = next(it for it in all_of_it.exchanges() if "client_credentials" in it.spec.auth_modes)
        ours = await place.connected(await all_of_it.integration(minted))
        async with place.store.write() as tx:
            own = ours.model_copy(update={"flow": Flow.CLIENT_CREDENTIALS})
            await tx.connections.replace_names(own, expected=ours.revision)
        assert (await place.refresh_until(ours, STATED_TIME_ALONE)).state is LifecycleState.ACTIVE
    keeps_failing = ErrorCode.REFRESH_KEEPS_FAILING
    beside_others = (ErrorCode.GRANT_PROBABLY_OVER, keeps_failing)  # a control request decides where one may
    wrong = {
        family: (beside, alone)
        for family, (beside, alone) in ended.items()
        if beside not in beside_others or alone is not keeps_failing
    }
    assert wrong == {}
    assert len(ended) > 5
    assert {beside for beside, _ in ended.values()} == set(beside_others)
