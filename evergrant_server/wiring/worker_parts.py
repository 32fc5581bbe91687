"""What a worker runs: every activity, and the replay of journals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from activities.agents import AgentStopActivities
from activities.anchors import AnchorPort, ObjectStoreAnchor, TimestampAnchor, WitnessAnchor
from activities.audit_log import AuditLogKeeper
from activities.audit_streams import (
    ANSWER_TIMEOUT_S as STREAM_TIMEOUT_S,
)
from activities.audit_streams import AuditStreamSender, InstallationReceiver, StreamReceiver
from activities.cells.moving import CellActivities
from activities.consents.accounts import AccountActivities
from activities.consents.code_exchange import CodeExchangeActivities
from activities.consents.consent_end import ConfirmationActivities, ConsentEndActivities, ExpiryActivities
from activities.consents.first_tokens import ClientGrantActivities, DeviceActivities
from activities.consents.import_export import ExportActivities
from activities.consents.login import LoginActivities
from activities.decisions import DecisionActivities, PermitReviewActivities
from activities.detection import DetectionActivities
from activities.erasure import ErasureActivities
from activities.grants import GrantServices
from activities.grants.late_tokens import LateTokenActivities
from activities.grants.refresh import RefreshActivities
from activities.grants.replaced_revocation import ReplacedGrantActivities
from activities.grants.revocation import RevocationActivities
from activities.histories import HistoryActivities
from activities.incidents.advancing import IncidentActivities
from activities.incidents.bulk import BulkActivities
from activities.integrations.consent_start import ConsentStartActivities
from activities.integrations.definition_rollout import DefinitionRolloutActivities
from activities.integrations.discovery import DiscoveryActivities
from activities.integrations.metadata import MetadataRereads, PublishedEndpoints
from activities.integrations.registration import ClientRegistrations
from activities.integrations.retries import ConnectionRetryActivities
from activities.keys.rotation import KeyRotationActivities
from activities.oauth import ClientDocumentActivities
from activities.people import PersonLoginActivities
from activities.provider_events import IntrospectionActivities, ReceiverKeysActivities
from activities.pruning import Periods, Pruning
from activities.questions import QuestionActivities
from activities.reconcile import ReconcileActivities
from activities.single_use.intent import CriticalSections
from activities.single_use.journal_replay import JournalReplayer, Replay
from activities.single_use.pacing import CircuitBreakers, RefreshPacing
from activities.single_use.protocol import SingleUseProtocol
from activities.support.provider_context import ProviderContextLoader
from activities.webhooks import ANSWER_TIMEOUT_S, WebhookDeliveryActivities
from activities.workloads import TrustedIssuerActivities
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.checkpoints.notes import WitnessKey
from evergrant_server.core.clock import Clock
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import LIMITS, AttemptKind, TimeLimits
from evergrant_server.core.single_use.retry_budget import BreakerRules
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store.audit_streams import StreamAccess
from evergrant_server.telemetry import traces
from evergrant_server.telemetry.traces import TracingTransport
from evergrant_server.wiring.platform import Platform
from providers.requests.sender import Sender

Activity = Callable[..., Any]


@dataclass(frozen=True)
class WorkerParts:
    """Activities for Temporal, and what a worker runs by itself."""

    activities: list[Activity]
    replayer: JournalReplayer
    audit_log: AuditLogKeeper
    streams: AuditStreamSender


def build_worker_parts(
    platform: Platform,
    sections: CriticalSections,
    journal: Journal,
    limits: TimeLimits = LIMITS,
    make_egress: Callable[..., Egress] = Egress,
) -> WorkerParts:
    """Make every activity class once. The fault harness passes its own `limits` and `make_egress`."""
    egress = make_egress(_policy(platform), wrapper=_wrapper())
    sender = Sender(egress)
    settings, store, clock = platform.settings, platform.store, platform.clock
    contexts = ProviderContextLoader(
        store, platform.registry, settings.public_url, clock, settings.expiry_announce_days
    )
    single_use = SingleUseProtocol(store, clock, sections, journal, sender, limits, platform.region)
    registrations = ClientRegistrations(store, egress, clock, sections, journal, limits)
    services = GrantServices(store, contexts, sender, single_use, clock, settings.control_requests)
    grants, replays = _grant_activities(platform, services, egress)
    published = PublishedEndpoints(store, platform.registry, egress)
    discovery = DiscoveryActivities(
        store, published, clock, settings.public_url, settings.client_metadata_url, registrations
    )
    replays[AttemptKind.REGISTRATION] = discovery.replay_answer
    decisions = DecisionActivities(store, clock)
    activities = [
        *grants,
        *_integration_activities(platform, contexts, egress, sender, discovery),
        *_recurring_activities(platform, contexts, egress, sender),
        _webhook_deliveries(platform, make_egress).deliver_due,
        decisions.advance_access_request,
        decisions.advance_call_approval,
        PermitReviewActivities(store, clock, settings.unused_permit_after).review_permits,
        *_order_activities(platform),
        CellActivities(store, platform.link, platform.reconciler, egress, clock).move_tenant,
    ]
    replayer = JournalReplayer(store, clock, journal, sections, replays)
    streams = _audit_streams(platform, make_egress)
    return WorkerParts(activities, replayer, _audit_log(platform, egress), streams)


def _order_activities(platform: Platform) -> list[Activity]:
    """Those that carry out what a person has ordered, page by page, and look at the whole log."""
    settings, store, clock = platform.settings, platform.store, platform.clock
    log_name = settings.log_name(settings.public_url)
    incidents = IncidentActivities(store, platform.link, clock, settings.public_url, log_name)
    keys = KeyRotationActivities(store, clock, settings.key_rotation, platform.key_services)
    return [
        AgentStopActivities(store, clock).advance_agent_stop,
        ErasureActivities(store, platform.link, clock).advance_erasure,
        QuestionActivities(store, clock).answer_question,
        DetectionActivities(store, clock, settings.detection_rules).detect_patterns,
        incidents.advance_incident,
        BulkActivities(store, clock).advance_bulk,
        keys.advance_key_rotation,
        keys.rotate_due_keys,
    ]


def _audit_log(platform: Platform, egress: Egress) -> AuditLogKeeper:
    """Raises BadSettings for an anchor that can't be used."""
    settings, store = platform.settings, platform.store
    try:
        anchors = anchors_of(settings, egress, platform.clock)
    except (ValueError, OSError) as error:
        raise BadSettings(f"an anchor of the audit log: {error}") from None
    heads = HeadsLog(store, platform.clock, settings.log_name(settings.public_url))
    return AuditLogKeeper(store, platform.clock, heads, anchors, settings.audit_anchor_late)


def anchors_of(settings: Settings, egress: Egress, clock: Clock) -> list[AnchorPort]:
    """The anchors of the settings. Raises ValueError, OSError."""
    every = settings.audit_anchor_interval
    anchors: list[AnchorPort] = []
    for key, url in settings.audit_witnesses:
        anchors.append(WitnessAnchor(egress, WitnessKey.parse(key), url, every))
    if settings.audit_store:
        anchors.append(ObjectStoreAnchor(settings.audit_store, every, clock))
    if settings.audit_timestamps and settings.audit_timestamps_ca is not None:
        hourly = max(every, settings.audit_timestamp_interval)
        stamps = (settings.audit_timestamps, settings.audit_timestamps_ca, hourly)
        anchors.append(TimestampAnchor(egress, *stamps))
    return anchors


def _grant_activities(
    platform: Platform, services: GrantServices, egress: Egress
) -> tuple[list[Activity], dict[AttemptKind, Replay]]:
    """Activities of connections, and those that replay an answer from the journal."""
    store, clock = platform.store, platform.clock
    code_exchange = CodeExchangeActivities(services)
    client_grants = ClientGrantActivities(services)
    devices = DeviceActivities(services)
    refresh = RefreshActivities(services, _circuit_breakers(platform.settings), RefreshPacing(store, clock))
    late_tokens = LateTokenActivities(services)
    revocation = RevocationActivities(services)
    export = ExportActivities(store, clock)
    activities = [
        code_exchange.exchange_code,
        ConsentEndActivities(services).end_consent,
        ConfirmationActivities(store, clock).lapse_consent,
        client_grants.request_client_grant,
        devices.poll_device,
        refresh.refresh_grant,
        late_tokens.verify_late_tokens,
        AccountActivities(store, services.contexts, egress, clock).look_up_accounts,
        revocation.record_revocation_request,
        revocation.revoke_grant,
        ReplacedGrantActivities(services).revoke_replaced_grants,
        ExpiryActivities(store, clock).announce_expiry,
        export.export_page,
        export.drop_export,
    ]
    replays: dict[AttemptKind, Replay] = {
        AttemptKind.REFRESH: refresh.replay,
        AttemptKind.CODE_EXCHANGE: code_exchange.replay,
        AttemptKind.LATE_TOKENS: late_tokens.replay,
        AttemptKind.CLIENT_GRANT: client_grants.replay,
        AttemptKind.DEVICE_CODE: devices.replay,
    }
    return activities, replays


def _circuit_breakers(settings: Settings) -> CircuitBreakers:
    longest_gap = settings.circuit_longest_gap.total_seconds()
    return CircuitBreakers(BreakerRules(threshold=settings.circuit_threshold, longest_gap=longest_gap))


def _integration_activities(
    platform: Platform,
    contexts: ProviderContextLoader,
    egress: Egress,
    sender: Sender,
    discovery: DiscoveryActivities,
) -> list[Activity]:
    store, clock = platform.store, platform.clock
    consent_start = ConsentStartActivities(store, contexts, sender, clock)
    login = LoginActivities(store, contexts, sender, egress, clock)
    rollout = DefinitionRolloutActivities(store, platform.registry, egress, clock)
    return [
        discovery.discover_endpoints,
        MetadataRereads(discovery.store, discovery.published, discovery.clock).reread_metadata,
        ConnectionRetryActivities(store, clock).retry_connections,
        consent_start.push_authorization_request,
        consent_start.request_temporary_credentials,
        login.verify_login,
        PersonLoginActivities(store, contexts, sender, egress, clock).verify_person,
        ClientDocumentActivities(store, egress, clock).read_document,
        rollout.check_definition,
        rollout.apply_decision,
        rollout.evaluate_rollout,
    ]


def _recurring_activities(
    platform: Platform, contexts: ProviderContextLoader, egress: Egress, sender: Sender
) -> list[Activity]:
    """Passes over the store, and what they do for one row also when the API requests it."""
    settings, store, clock = platform.settings, platform.store, platform.clock
    receiver_keys = ReceiverKeysActivities(store, egress, clock)
    issuers = TrustedIssuerActivities(store, egress, clock)
    introspection = IntrospectionActivities(
        store, contexts, sender, receiver_keys, issuers, clock, settings.introspection_interval
    )
    histories = HistoryActivities(store, platform.link, clock)
    pruning = Pruning(store, clock, _periods(settings))
    reconcile = ReconcileActivities(store, platform.reconciler, histories, clock, pruning)
    return [
        receiver_keys.fetch_keys,
        issuers.fetch_keys,
        introspection.introspect_grants,
        reconcile.reconcile,
        histories.run_ends,
    ]


def _periods(settings: Settings) -> Periods:
    return Periods(
        attempts=settings.attempt_retention,
        consents=settings.consent_retention,
        histories=settings.exported_history_retention,
        outbox=settings.outbox_retention,
        idempotency=settings.idempotency_retention,
        audit=settings.audit_retention,
        deliveries=settings.webhook_retention,
    )


def _webhook_deliveries(platform: Platform, make_egress: Callable[..., Egress]) -> WebhookDeliveryActivities:
    settings = platform.settings
    return WebhookDeliveryActivities(
        platform.store,
        make_egress(_policy(platform), answer_timeout_s=ANSWER_TIMEOUT_S, wrapper=_wrapper()),
        platform.clock,
        give_up_after=settings.webhook_give_up_after,
        retention=settings.webhook_retention,
    )


def _audit_streams(platform: Platform, make_egress: Callable[..., Egress]) -> AuditStreamSender:
    """Raises BadSettings for a file that can't be used."""
    settings = platform.settings
    limits: dict[str, Any] = {"answer_timeout_s": STREAM_TIMEOUT_S, "wrapper": _wrapper()}
    installation = None
    if settings.audit_stream_url:
        access = StreamAccess(
            Secret(settings.audit_stream_url), settings.stream_headers(), settings.stream_secrets()
        )
        installation = InstallationReceiver(
            StreamReceiver(settings.stream_format, access),
            settings.stream_begin,
            make_egress(_policy(platform, settings.stream_host_port), **limits),
        )
    egress = make_egress(_policy(platform), **limits)
    return AuditStreamSender(platform.store, egress, platform.clock, settings.public_url, installation)


def _policy(platform: Platform, *further: str) -> EgressPolicy:
    settings = platform.settings
    return EgressPolicy((*settings.egress_allow, *further), settings.start_command, settings.trusted_ca_file)


def _wrapper() -> type[TracingTransport] | None:
    return TracingTransport if traces.is_enabled() else None
