"""Renders docs/reference/events.md and event.schema.json from `core.events`."""

import json
from collections.abc import Callable, Iterable

from evergrant_server.core.events import DEFAULT_EVENTS, EventData, EventMessage, EventType
from evergrant_server.core.webhooks import RETRY_DELAYS, DeliveryProblem, DisabledBy

Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]

WHEN = {
    EventType.CREATED: "a connection got its first grant: the subject consented, or it was imported",
    EventType.REFRESHED: "a refresh replaced the grant; as often as tokens expire",
    EventType.FAILING: "refreshes keep failing; `repairer` should look. A valid token is served all the same",
    EventType.RECOVERED: "refreshes succeed again, or the subject has consented again",
    EventType.NEEDS_REAUTH: "the grant is lost (`reason`); the subject has to consent again. With the reason "
    "`reconsent_required` and the state `active` it works on: a campaign asks, or reminds",
    EventType.OUTCOME_UNKNOWN: "a refresh's response was lost and its token is spent. Always sent with "
    "`connection.needs_reauth`: that one is for contacting subjects, this one for counting losses",
    EventType.EXPIRING: "a grant that no refresh extends ends at `ends_at`",
    EventType.REVOKED: "it is revoked; `revocation` shows the result at the provider",
    EventType.BULK_READ: "an app requested an export (`kind`: `export`), or leased as many connections "
    "within an hour as `EVERGRANT_BULK_READ_ALARM` says (`lease`); `data`: `tenant`, `app`, `kind`. Only "
    "for webhooks of every integration",
    EventType.ACCESS_REQUESTED: "an app asks for a permit, or the removal of an unused one is proposed "
    "(`kind`); `data`: `tenant`, `request_id`, `app`, `permit`, `reason` and who asked. Like all `access.` "
    "events only for webhooks of every integration",
    EventType.ACCESS_REMINDED: "the request waits still: once a day, a removal once a week",
    EventType.ACCESS_APPROVED: "an admin has approved it; `ends_at`, if it is for a time",
    EventType.ACCESS_DENIED: "an admin has denied it; `note` may say why",
    EventType.ACCESS_EXPIRED: "no admin has decided in time",
    EventType.ACCESS_ENDED: "access that was given for a time is over",
    EventType.CALL_APPROVAL_REQUESTED: "an agent asks for one call; `data`: `tenant`, `approval_id`, "
    "`agent`, `connection_id`, `call` (the call's method or tool), `reason`, `decide_by`. Like all "
    "`call_approval.` and `agent.` events only for webhooks of every integration",
    EventType.CALL_APPROVAL_REMINDED: "the call waits still: once a day",
    EventType.CALL_APPROVAL_ESCALATED: "half of the time to decide is over; `sponsor` answers for the agent",
    EventType.CALL_APPROVAL_APPROVED: "a person has approved it: it may be made once, until `use_by`",
    EventType.CALL_APPROVAL_DENIED: "a person has denied it; `note` may say why",
    EventType.CALL_APPROVAL_EXPIRED: "it was not decided, or not made, in time",
    EventType.AGENT_STOPPED: "an agent was stopped; `data`: `tenant`, `app_id`, `agent`, `reason`, and "
    "whether connections are revoked too (`revoke_connections`)",
    EventType.TOKEN_FAMILY_REPLAYED: "a used code or refresh token of a gateway's client came again, and "
    "what it belonged to has ended: perhaps it was stolen; `data`: `tenant`, `family_id`, `app`, `client`, "
    "`subject`, `reason`. Only for webhooks of every integration",
    EventType.BREAK_GLASS: "a session that administers the tenant was made on the host; `data`: `tenant`, "
    "`who`, `reason`, `until`. Only for webhooks of every integration",
    EventType.DETECTED: "a worker noticed a use that is unlike those before; `data`: `tenant`, `object` (an "
    "app or a connection), `app`, `kind` and its facts. Once a day for an object and a kind, and only for "
    "webhooks of every integration",
    EventType.TENANT_DISABLED: "the operator has disabled the tenant; `data`: `tenant`, `reason`. Only for "
    "webhooks of every integration",
    EventType.TENANT_ENABLED: "the operator has enabled it again; the same `data`, for the same webhooks",
    EventType.ACCOUNT_MISMATCH: "the subject consented with another account than the connection's; the old "
    "grant stays",
    EventType.ACCOUNT_SHARED: "the account is connected under another subject too, as after a consent that "
    "the wrong person gave",
    EventType.INCIDENT_OPENED: "an admin has begun to stop and revoke connections, or to replace what leaked "
    "keys protect; `data`: `tenant`, `incident_id`, `kind`, `reason`, and what it is about. Only for "
    "webhooks of every integration",
    EventType.INCIDENT_ENDED: "its report is signed; `data`: `tenant`, `incident_id`, `kind`, `connections`, "
    "`outcomes`, `digest`, `key`. For the same webhooks",
    EventType.OFFBOARDING_BEGUN: "a person leaves and their connections are stopped; `data`: `tenant`, "
    "`offboarding_id`, `reason`, `person` (a keyed hash), `connections`, `held_until` and what else ended. "
    "Only for webhooks of every integration",
    EventType.OFFBOARDING_PLANNED: "the tenant's rule about leavers is a dry run: what would have begun; the "
    "same `data`, for the same webhooks",
    EventType.OFFBOARDING_UNDONE: "their connections were put back; `data`: `tenant`, `offboarding_id`, "
    "`person`, `restored`. For the same webhooks",
    EventType.OFFBOARDING_ENDED: "the report is signed; `data`: `tenant`, `offboarding_id`, `kind`, "
    "`connections`, `outcomes`, `digest`, `key`. For the same webhooks",
    EventType.CAMPAIGN_BEGUN: "an integration has another client, and its subjects are asked to consent to "
    "it; `data`: `tenant`, `campaign_id`, `integration`, `reason`, `clients`, `end`, `ends_at`. Only for "
    "webhooks of every integration",
    EventType.CAMPAIGN_UNDONE: "before its first wave it was undone; `data`: `tenant`, `campaign_id`, "
    "`integration`. For the same webhooks",
    EventType.CAMPAIGN_ENDED: "its report is signed; `data`: `tenant`, `campaign_id`, `kind`, `integration`, "
    "`connections`, `outcomes`, `digest`, `key`. For the same webhooks",
    EventType.PING: "an admin requested it (`POST /v1/webhooks/{name}/test`); `data`: `tenant`, `webhook`",
}
PROBLEMS = {
    DeliveryProblem.REFUSED: "the endpoint answered with a status outside 2xx (`response_status`)",
    DeliveryProblem.REDIRECTED: "it answered with a redirect; redirects aren't followed",
    DeliveryProblem.GONE: "it answered 410: the webhook is disabled",
    DeliveryProblem.TIMED_OUT: "no complete response within 15 seconds",
    DeliveryProblem.UNREACHABLE: "no connection, or no TLS with a trusted certificate",
    DeliveryProblem.UNREADABLE: "a response of more than 1 MiB, or in an unrequested encoding",
    DeliveryProblem.EGRESS_REFUSED: "its name resolved to an address outside the public internet",
}
DISABLED = {
    DisabledBy.ADMIN: "an admin",
    DisabledBy.GONE: "the endpoint answered 410",
    DisabledBy.FAILING: "no delivery succeeded for `EVERGRANT_WEBHOOK_GIVE_UP_AFTER`",
}


def page(note: str, table: Table) -> str:
    events = [(f"`{it.value}`", "yes" if it in DEFAULT_EVENTS else "no", WHEN[it]) for it in EventType]
    members = [(f"`{name}`", field.description or "") for name, field in EventData.model_fields.items()]
    waits = ", ".join(str(int(wait.total_seconds())) for wait in RETRY_DELAYS)
    return "\n".join(
        [
            note,
            "# Events",
            "",
            "The events that webhooks receive ([how](../guide/webhooks.md)). Each is written with its audit",
            "record in one transaction, and delivered at least once to each subscribed webhook: ignore a",
            "`webhook-id` that you have handled.",
            "",
            *table(("event", "by default", "sent when"), events),
            "",
            "## What is sent",
            "",
            "`type`, `timestamp` (when it happened) and `data`; as a JSON schema:",
            "[event.schema.json](event.schema.json). Members may be added.",
            "",
            *table(("member of `data`", "what it is"), members),
            "",
            "## Deliveries",
            "",
            "A failed delivery is retried after these seconds, each up to a fifth longer or shorter:",
            f"{waits}.",
            "Then it is `failed`. A failing endpoint gets one delivery at a time, with pauses of five",
            "seconds to an hour, until one succeeds.",
            "",
            *table(("`problem`", "meaning"), [(f"`{it.value}`", PROBLEMS[it]) for it in DeliveryProblem]),
            "",
            *table(("`disabled_by`", "who"), [(f"`{it.value}`", DISABLED[it]) for it in DisabledBy]),
            "",
        ]
    )


def schema() -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **EventMessage.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"
