"""Slack's Events API: `v0` signatures over version, timestamp and body.

`tokens_revoked` names users and the kind of their tokens; `app_uninstalled` ends all of a workspace.
docs.slack.dev: "Verifying requests from Slack", "tokens_revoked event", "app_uninstalled event".
"""

from typing import Any

from evergrant_server.core.elsewhere import Weight
from evergrant_server.core.marks import fact
from evergrant_server.core.receivers import Mark
from evergrant_server.core.text import is_whole
from providers.events.base import (
    Fact,
    Heard,
    Incoming,
    Refused,
    Trust,
    body_object,
    digest,
    echoed,
    hex_hmac,
    is_name,
    key_of,
    member,
    require,
    same,
    signed_moment,
    unix,
)

# Both facts are in a bot's reply, and a user's token that came with it has both: the kind tells them apart.
_USERS = {"oauth": ("user", "authed_user.id"), "bot": ("bot", "bot_user_id")}


def verify_slack(it: Incoming, trust: Trust) -> Heard:
    timestamp = it.headers.get("x-slack-request-timestamp", "")
    expected = "v0=" + hex_hmac(key_of(trust), b"v0:", timestamp.encode(), b":", it.body)
    require(same(expected, it.headers.get("x-slack-signature", "")))
    signed_moment(timestamp, it.now)
    body = body_object(it.body)
    challenge = body.get("challenge")
    if body.get("type") == "url_verification" and isinstance(challenge, str):
        return Heard("", answer={"challenge": echoed(challenge)})
    event = member(body, "event", "type")
    at = unix(body.get("event_time"))
    team = body.get("team_id")
    accounts = _accounts(event, team, member(body, "event", "tokens")) if is_name(team) else ()
    if not accounts:
        return Heard("")
    known = body.get("event_id")
    if isinstance(known, str) and not is_whole(known):
        raise Refused("invalid_request", "event_id holds NUL, or half a character.")
    id = known if isinstance(known, str) else digest(it.body)
    return Heard(id, (Fact(f"slack:{event}", Weight.ENDED, accounts, at),))


def _accounts(event: Any, team: str, tokens: Any) -> tuple[frozenset[Mark], ...]:
    whole = Mark(fact("team.id"), team)
    if event == "app_uninstalled":
        return (frozenset({whole}),)
    if event != "tokens_revoked":
        return ()
    found: list[frozenset[Mark]] = []
    for name, (kind, path) in _USERS.items():
        users = member(tokens, name)
        for user in users if isinstance(users, list) else ():
            if is_name(user):
                found.append(frozenset({whole, Mark(fact("holder"), kind), Mark(fact(path), user)}))
    return tuple(found)
