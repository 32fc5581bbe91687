"""Slack's Events API: `v0` signatures over version, timestamp and body.

`tokens_revoked` names users and their kind of token; `app_uninstalled` ends all grants of a workspace.
docs.slack.dev: "Verifying requests from Slack", "tokens_revoked event", "app_uninstalled event".
"""

from typing import Any

from evergrant_server.core.provider_events.account_identifiers import fact_name
from evergrant_server.core.provider_events.external_revocation import Certainty
from evergrant_server.core.provider_events.receivers import AccountIdentifier
from evergrant_server.core.text import is_storable_text
from providers.events.base import (
    EventRejected,
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
    checked_challenge,
    equal_in_constant_time,
    from_unix,
    hmac_hex,
    is_identifier,
    json_object,
    nested,
    require_signature,
    secret_key,
    sha256_hex,
    signed_timestamp,
)

# a reply with a bot's and a user's token has both identifiers, so the holder distinguishes them
_USERS = {"oauth": ("user", "authed_user.id"), "bot": ("bot", "bot_user_id")}


def verify_slack(request: EventRequest, trust: EventTrust) -> VerifiedEvents:
    timestamp = request.headers.get("x-slack-request-timestamp", "")
    expected = "v0=" + hmac_hex(secret_key(trust), b"v0:", timestamp.encode(), b":", request.body)
    require_signature(equal_in_constant_time(expected, request.headers.get("x-slack-signature", "")))
    signed_timestamp(timestamp, request.now)
    body = json_object(request.body)
    challenge = body.get("challenge")
    if body.get("type") == "url_verification" and isinstance(challenge, str):
        return VerifiedEvents("", reply={"challenge": checked_challenge(challenge)})
    event = nested(body, "event", "type")
    at = from_unix(body.get("event_time"))
    team = body.get("team_id")
    accounts = _accounts(event, team, nested(body, "event", "tokens")) if is_identifier(team) else ()
    if not accounts:
        return VerifiedEvents("")
    known = body.get("event_id")
    if isinstance(known, str) and not is_storable_text(known):
        raise EventRejected("invalid_request", "event_id holds NUL or a lone surrogate.")
    id = known if isinstance(known, str) else sha256_hex(request.body)
    return VerifiedEvents(id, (ProviderEvent(f"slack:{event}", Certainty.ENDED, accounts, at),))


def _accounts(event: Any, team: str, tokens: Any) -> tuple[frozenset[AccountIdentifier], ...]:
    whole = AccountIdentifier(fact_name("team.id"), team)
    if event == "app_uninstalled":
        return (frozenset({whole}),)
    if event != "tokens_revoked":
        return ()
    found: list[frozenset[AccountIdentifier]] = []
    for name, (kind, path) in _USERS.items():
        users = nested(tokens, name)
        for user in users if isinstance(users, list) else ():
            if is_identifier(user):
                found.append(
                    frozenset(
                        {
                            whole,
                            AccountIdentifier(fact_name("holder"), kind),
                            AccountIdentifier(fact_name(path), user),
                        }
                    )
                )
    return tuple(found)
