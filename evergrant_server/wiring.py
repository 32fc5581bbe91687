"""Puts the parts together. The only place, beside `worker.py`, that knows all of them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client

from activities.announcing import AnnouncingActivities
from activities.breaker import Circuits
from activities.consent import ConsentActivities
from activities.critical import CriticalSections
from activities.devices import DeviceActivities
from activities.discovery import DiscoveryActivities
from activities.elsewhere import ElsewhereActivities
from activities.follow_ups import FollowUpActivities
from activities.history import HistoryActivities
from activities.holdings import Holder
from activities.late_answers import LateAnswerActivities
from activities.minting import MintActivities
from activities.onboarding import OnboardingActivities
from activities.preparing import PreparingActivities
from activities.pushing import PushActivities
from activities.receiver_keys import ReceiverKeysActivities
from activities.reconcile import ReconcileActivities
from activities.refresh import RefreshActivities
from activities.registration import Registrations
from activities.replay import Replayer
from activities.revocation import RevocationActivities
from activities.single_use import SingleUse
from activities.transfer import ExportActivities
from activities.webhooks import ANSWER_TIME, WebhookActivities
from evergrant_server import telemetry_metrics, telemetry_traces
from evergrant_server.checkout import refuse_strangers
from evergrant_server.core.attempt import LIMITS, AttemptKind, Limits
from evergrant_server.core.circuit import CircuitRules
from evergrant_server.core.clock import Clock, SystemClock
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.probe import refuse_foreign_keys
from evergrant_server.telemetry import configure_logging
from evergrant_server.telemetry_sdk import BadTelemetry
from evergrant_server.telemetry_traces import TracedTransport
from evergrant_server.temporal_link import ClosedRuns, Lives, OutboxRelay, Reconciler, TemporalLink
from evergrant_server.temporal_link.connect import connect
from evergrant_server.temporal_link.tracing import plugins, replay_safe_provider
from providers.flows import Sender
from providers.registry import Registry


@dataclass(frozen=True)
class Platform:
    """What API, worker and operator commands all need."""

    settings: Settings
    clock: Clock
    ring: KeyRing
    store: Store
    registry: Registry
    client: Client
    link: TemporalLink
    reconciler: Reconciler
    relay: OutboxRelay


@asynccontextmanager
async def platform(
    settings: Settings, role: Role, *, clock: Clock | None = None, lazy: bool = False, **client_options: Any
) -> AsyncIterator[Platform]:
    """Open the parts and close them again.

    `lazy` doesn't wait for Temporal: what needs it fails when it is used. Raises Failure
    KEY_UNAVAILABLE, STORE_UNAVAILABLE, SCHEMA_MISMATCH or TEMPORAL_UNAVAILABLE.
    """
    refuse_strangers()
    clock = clock or SystemClock()
    ring = KeyRing.open(settings.keys, role)
    store = await Store.open(settings.database_url, ring, clock)
    try:
        await refuse_foreign_keys(store, ring)
        client = await connect(settings, lazy=lazy, plugins=plugins(), **client_options)
        link = TemporalLink(client, settings.temporal_task_queue)
        registry = Registry.load()
        lives = Lives(store, link, ring, clock, registry.refresh_rules, settings.expiry_announce_days)
        reconciler = Reconciler(store, link, lives, clock)
        relay = OutboxRelay(store, link, reconciler, clock, settings.relay_interval)
        yield Platform(settings, clock, ring, store, registry, client, link, reconciler, relay)
    finally:
        await store.close()


@dataclass(frozen=True)
class Work:
    """What a worker does: activities for Temporal, and the replay of journals by itself."""

    activities: list[Callable[..., Any]]
    replayer: Replayer


def activities(
    parts: Platform, sections: CriticalSections, journal: Journal, limits: Limits = LIMITS
) -> Work:
    """Every activity, in plain sight; a harness gives `limits` of its own."""
    around = TracedTransport if telemetry_traces.on() else None
    policy = EgressPolicy(allow=parts.settings.egress_allow)
    egress = Egress(policy, around=around)
    sender = Sender(egress)
    settings = parts.settings
    holder = Holder(
        parts.store, parts.registry, settings.public_url, parts.clock, settings.expiry_announce_days
    )
    single_use = SingleUse(parts.store, parts.clock, sections, journal, limits)
    circuits = Circuits(
        CircuitRules(
            threshold=parts.settings.circuit_threshold,
            longest_gap=parts.settings.circuit_longest_gap.total_seconds(),
        )
    )
    consent = ConsentActivities(parts.store, holder, sender, single_use, parts.clock)
    minting = MintActivities(parts.store, holder, sender, single_use, parts.clock)
    devices = DeviceActivities(parts.store, holder, sender, single_use, parts.clock)
    refresh = RefreshActivities(parts.store, holder, sender, single_use, parts.clock, circuits)
    revocation = RevocationActivities(parts.store, holder, sender, single_use, parts.clock)
    history = HistoryActivities(parts.store, parts.clock)
    registrations = Registrations(parts.store, egress, parts.clock, sections, journal, limits)
    discovery = DiscoveryActivities(
        parts.store, parts.registry, egress, parts.clock, parts.settings.public_url, registrations
    )
    announcing = AnnouncingActivities(parts.store, parts.clock)
    export = ExportActivities(parts.store, parts.clock)
    closed_runs = ClosedRuns(parts.store, parts.link, parts.clock)
    upkeep = ReconcileActivities(
        parts.store, parts.reconciler, closed_runs, parts.clock, parts.settings.webhook_retention
    )
    receiver_keys = ReceiverKeysActivities(parts.store, egress, parts.clock)
    pushing = PushActivities(parts.store, holder, sender, parts.clock)
    elsewhere = ElsewhereActivities(
        parts.store, holder, sender, receiver_keys, parts.clock, parts.settings.introspection_interval
    )
    webhooks = WebhookActivities(
        parts.store,
        Egress(policy, answer_time=ANSWER_TIME, around=around),
        parts.clock,
        give_up_after=parts.settings.webhook_give_up_after,
        retention=parts.settings.webhook_retention,
    )
    onboarding = OnboardingActivities(parts.store, parts.registry, egress, parts.clock)
    preparing = PreparingActivities(parts.store, holder, sender, parts.clock)
    late = LateAnswerActivities(parts.store, holder, sender, single_use, parts.clock)
    follow_ups = FollowUpActivities(parts.store, holder, egress, parts.clock)
    endings = {
        AttemptKind.REFRESH: refresh.answered,
        AttemptKind.CODE_EXCHANGE: consent.answered,
        AttemptKind.LATE_ANSWER: late.answered,
        AttemptKind.MINT: minting.answered,
        AttemptKind.DEVICE_CODE: devices.answered,
        AttemptKind.REGISTRATION: discovery.answered,
    }
    offered = [
        consent.exchange_code,
        consent.end_consent,
        minting.mint_grant,
        devices.poll_device,
        refresh.refresh_grant,
        late.verify_late_answer,
        follow_ups.look_up_accounts,
        revocation.ask_revocation,
        revocation.revoke_grant,
        history.run_ends,
        discovery.discover_endpoints,
        discovery.reread_metadata,
        announcing.announce_expiry,
        export.export_page,
        export.drop_export,
        upkeep.reconcile,
        webhooks.deliver_due,
        receiver_keys.fetch_keys,
        pushing.push_request,
        elsewhere.look_elsewhere,
        onboarding.check_definition,
        onboarding.decide_definition,
        onboarding.watch_definition,
        preparing.prepare_consent,
    ]
    return Work(offered, Replayer(parts.store, parts.clock, journal, sections, endings))


def observe(settings: Settings, service: str) -> None:
    """Start a process's logs, metrics and (if the environment asks for them) traces.

    Raises BadSettings for an `OTEL_…` variable that can't be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    try:
        telemetry_traces.start(service, replay_safe_provider)
        telemetry_metrics.start(service)
    except BadTelemetry as error:
        raise BadSettings(str(error)) from None


def stop_observing() -> None:
    """Send what the exporters still hold; a collector that is away costs a few seconds at most."""
    telemetry_traces.stop()
    telemetry_metrics.stop()
