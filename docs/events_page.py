"""docs/reference/events.md and event.schema.json: what a receiver is told, made from `core.events`."""

import json
from collections.abc import Callable, Iterable

from evergrant_server.core.events import DEFAULT_EVENTS, EventData, EventMessage, EventType
from evergrant_server.core.webhooks import RETRY_DELAYS, DeliveryProblem, DisabledBy

Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]

WHEN = {
    EventType.CREATED: "a connection got its first grant: the subject consented, or it was imported",
    EventType.REFRESHED: "a refresh replaced the grant; as often as tokens expire",
    EventType.FAILING: "refreshes keep failing; `repairer` should look. A valid token is served all the same",
    EventType.RECOVERED: "it works again after it had been failing, or had needed a consent",
    EventType.NEEDS_REAUTH: "the grant is lost, `reason` says why; the subject has to consent again",
    EventType.OUTCOME_UNKNOWN: "a refresh's answer was lost and its token is spent. Always told with "
    "`connection.needs_reauth`: that one is for who asks subjects, this one for who counts losses",
    EventType.EXPIRING: "something that no refresh keeps alive ends at `ends_at`",
    EventType.REVOKED: "it is revoked, for good; `revocation` says how that was reached",
    EventType.PING: "somebody asked for it (`POST /v1/webhooks/{name}/test`); `data` has `tenant`, `webhook`",
}
PROBLEMS = {
    DeliveryProblem.REFUSED: "the endpoint answered with a status outside 2xx, which `response_status` says",
    DeliveryProblem.REDIRECTED: "it answered with a redirect, which is not followed",
    DeliveryProblem.GONE: "it answered 410: the webhook is disabled",
    DeliveryProblem.TIMED_OUT: "no complete answer within 15 seconds",
    DeliveryProblem.UNREACHABLE: "no connection, or no TLS with a certificate we trust",
    DeliveryProblem.UNREADABLE: "an answer of more than 1 MiB, or in an encoding nobody asked for",
    DeliveryProblem.EGRESS_REFUSED: "its name led to an address that isn't the public internet",
}
DISABLED = {
    DisabledBy.ADMIN: "an admin",
    DisabledBy.GONE: "the endpoint answered 410",
    DisabledBy.FAILING: "nothing got through for as long as `EVERGRANT_WEBHOOK_GIVE_UP_AFTER`",
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
            "What webhooks are told ([how to receive them](../guide/webhooks.md)). Each comes from an audit",
            "record, is written in the same transaction, and is told at least once to each webhook that",
            "wants it: do nothing for a `webhook-id` that you know.",
            "",
            *table(("event", "by default", "told when"), events),
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
            "A delivery that fails is tried again after these seconds, each up to a fifth longer or shorter:",
            f"{waits}.",
            "Then it is `failed`. An endpoint that fails is left alone as a whole, for five seconds at first",
            "and for an hour at most, and gets one try at a time until one succeeds.",
            "",
            *table(
                ("`problem`", "what happened"), [(f"`{it.value}`", PROBLEMS[it]) for it in DeliveryProblem]
            ),
            "",
            *table(("`disabled_by`", "who"), [(f"`{it.value}`", DISABLED[it]) for it in DisabledBy]),
            "",
        ]
    )


def schema() -> str:
    said = {"$schema": "https://json-schema.org/draft/2020-12/schema", **EventMessage.model_json_schema()}
    return json.dumps(said, indent=2) + "\n"
