"""Puts the parts together. The only place, beside `worker.py`, that knows all of them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client

from activities.grants.accounts import AccountActivities
from activities.grants.client_grants import ClientGrantActivities
from activities.grants.code_exchange import CodeExchangeActivities
from activities.grants.consent_end import ConsentEndActivities
from activities.grants.device import DeviceActivities
from activities.grants.expiry_notice import ExpiryActivities
from activities.grants.import_export import ExportActivities
from activities.grants.late_verification import LateTokenActivities
from activities.grants.refresh import RefreshActivities
from activities.grants.revocation import RevocationActivities
from activities.grants.services import GrantServices
from activities.integrations.definition_rollout import DefinitionRolloutActivities
from activities.integrations.discovery import DiscoveryActivities
from activities.integrations.oauth1 import OAuth1Activities
from activities.integrations.par import ParActivities
from activities.integrations.registration import ClientRegistrations
from activities.maintenance.history import HistoryActivities
from activities.maintenance.introspection import IntrospectionActivities
from activities.maintenance.receiver_keys import ReceiverKeysActivities
from activities.maintenance.reconcile import ReconcileActivities
from activities.maintenance.webhook_delivery import ANSWER_TIMEOUT_S, WebhookDeliveryActivities
from activities.single_use.circuit_breakers import CircuitBreakers
from activities.single_use.critical_section import CriticalSections
from activities.single_use.journal_replay import JournalReplayer
from activities.single_use.protocol import SingleUseProtocol
from activities.support.provider_context import ProviderContextLoader
from evergrant_server.checkout import require_own_packages
from evergrant_server.core.clock import Clock, SystemClock
from evergrant_server.core.single_use.attempt import LIMITS, AttemptKind, TimeLimits
from evergrant_server.core.single_use.circuit_breaker import BreakerRules
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.probe import require_matching_key_ring
from evergrant_server.telemetry import metrics, traces
from evergrant_server.telemetry.logs import configure_logging
from evergrant_server.telemetry.sdk import BadTelemetry
from evergrant_server.telemetry.traces import TracingTransport
from evergrant_server.temporal_link.closed_runs import ClosedRunExporter
from evergrant_server.temporal_link.connect import connect
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.outbox_relay import OutboxRelay
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.tracing import client_plugins, replay_safe_provider
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from providers.definition.registry import Registry
from providers.requests.sender import Sender


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
async def open_platform(
    settings: Settings, role: Role, *, clock: Clock | None = None, lazy: bool = False, **client_options: Any
) -> AsyncIterator[Platform]:
    """Open the parts and close them again.

    `lazy` doesn't wait for Temporal: what needs it fails when it is used. Raises Failure
    KEY_UNAVAILABLE, STORE_UNAVAILABLE, SCHEMA_MISMATCH or TEMPORAL_UNAVAILABLE.
    """
    require_own_packages()
    clock = clock or SystemClock()
    ring = KeyRing.open(settings.key_path, role)
    store = await Store.open(settings.database_url, ring, clock)
    try:
        await require_matching_key_ring(store, ring)
        client = await connect(settings, lazy=lazy, plugins=client_plugins(), **client_options)
        link = TemporalLink(client, settings.temporal_task_queue)
        registry = Registry.load()
        lives = WorkflowStarter(
            store, link, ring, clock, registry.refresh_rules, settings.expiry_announce_days
        )
        reconciler = Reconciler(store, link, lives, clock)
        relay = OutboxRelay(store, link, reconciler, clock, settings.relay_interval)
        yield Platform(settings, clock, ring, store, registry, client, link, reconciler, relay)
    finally:
        await store.close()


@dataclass(frozen=True)
class WorkerParts:
    """What a worker does: activities for Temporal, and the replay of journals by itself."""

    activities: list[Callable[..., Any]]
    replayer: JournalReplayer


def build_activities(
    parts: Platform, sections: CriticalSections, journal: Journal, limits: TimeLimits = LIMITS
) -> WorkerParts:
    """Every activity, in plain sight; a harness gives `limits` of its own."""
    wrapper = TracingTransport if traces.is_enabled() else None
    policy = EgressPolicy(allow=parts.settings.egress_allow)
    egress = Egress(policy, wrapper=wrapper)
    sender = Sender(egress)
    settings = parts.settings
    holder = ProviderContextLoader(
        parts.store, parts.registry, settings.public_url, parts.clock, settings.expiry_announce_days
    )
    single_use = SingleUseProtocol(parts.store, parts.clock, sections, journal, limits)
    circuits = CircuitBreakers(
        BreakerRules(
            threshold=parts.settings.circuit_threshold,
            longest_gap=parts.settings.circuit_longest_gap.total_seconds(),
        )
    )
    services = GrantServices(parts.store, holder, sender, single_use, parts.clock)
    code_exchange = CodeExchangeActivities(services)
    consent_end = ConsentEndActivities(services)
    minting = ClientGrantActivities(services)
    devices = DeviceActivities(services)
    refresh = RefreshActivities(services, circuits)
    revocation = RevocationActivities(services)
    history = HistoryActivities(parts.store, parts.clock)
    registrations = ClientRegistrations(parts.store, egress, parts.clock, sections, journal, limits)
    discovery = DiscoveryActivities(
        parts.store, parts.registry, egress, parts.clock, parts.settings.public_url, registrations
    )
    announcing = ExpiryActivities(parts.store, parts.clock)
    export = ExportActivities(parts.store, parts.clock)
    closed_runs = ClosedRunExporter(parts.store, parts.link, parts.clock)
    upkeep = ReconcileActivities(
        parts.store, parts.reconciler, closed_runs, parts.clock, parts.settings.webhook_retention
    )
    receiver_keys = ReceiverKeysActivities(parts.store, egress, parts.clock)
    pushing = ParActivities(parts.store, holder, sender, parts.clock)
    elsewhere = IntrospectionActivities(
        parts.store, holder, sender, receiver_keys, parts.clock, parts.settings.introspection_interval
    )
    webhooks = WebhookDeliveryActivities(
        parts.store,
        Egress(policy, answer_timeout_s=ANSWER_TIMEOUT_S, wrapper=wrapper),
        parts.clock,
        give_up_after=parts.settings.webhook_give_up_after,
        retention=parts.settings.webhook_retention,
    )
    onboarding = DefinitionRolloutActivities(parts.store, parts.registry, egress, parts.clock)
    preparing = OAuth1Activities(parts.store, holder, sender, parts.clock)
    late = LateTokenActivities(services)
    follow_ups = AccountActivities(parts.store, holder, egress, parts.clock)
    endings = {
        AttemptKind.REFRESH: refresh.replay,
        AttemptKind.CODE_EXCHANGE: code_exchange.replay,
        AttemptKind.LATE_TOKENS: late.replay,
        AttemptKind.CLIENT_GRANT: minting.replay,
        AttemptKind.DEVICE_CODE: devices.replay,
        AttemptKind.REGISTRATION: discovery.replay_answer,
    }
    offered = [
        code_exchange.exchange_code,
        consent_end.end_consent,
        minting.request_client_grant,
        devices.poll_device,
        refresh.refresh_grant,
        late.verify_late_tokens,
        follow_ups.look_up_accounts,
        revocation.record_revocation_request,
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
        pushing.push_authorization_request,
        elsewhere.introspect_grants,
        onboarding.check_definition,
        onboarding.decide_definition,
        onboarding.watch_definition,
        preparing.fetch_temporary_credentials,
    ]
    return WorkerParts(offered, JournalReplayer(parts.store, parts.clock, journal, sections, endings))


def start_telemetry(settings: Settings, service: str) -> None:
    """Start a process's logs, metrics and (if the environment asks for them) traces.

    Raises BadSettings for an `OTEL_…` variable that can't be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    try:
        traces.start(service, replay_safe_provider)
        metrics.start(service)
    except BadTelemetry as error:
        raise BadSettings(str(error)) from None


def flush_telemetry() -> None:
    """Send what the exporters still hold; a collector that is away costs a few seconds at most."""
    traces.flush()
    metrics.flush()
