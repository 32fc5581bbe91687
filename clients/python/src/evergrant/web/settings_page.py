"""What a settings page shows: the offered integrations with their accounts, and failures in plain words.

The bodies are those that the connect element reads (clients/web/README.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evergrant.api.models import Connection
from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    Denied,
    EvergrantError,
    ProviderUnavailable,
    ReconnectNeeded,
)
from evergrant.models import State

REASON = "ended by its person"  # of a revocation, in the audit log


@dataclass(frozen=True, slots=True)
class Offer:
    """An integration that the page offers. `logo` is a URL that the page may show; with `several` a person
    connects more than one account, each with a label of its own."""

    integration: str
    title: str
    logo: str | None = None
    several: bool = False


class Notice(NamedTuple):
    """What happened: `status` is `connected`, `pending` or `failed`, `turn` whose turn it is."""

    status: str
    turn: str | None
    reason: str


_YOU, _ADMIN, _TIME, _OPERATOR = "you", "admin", "time", "operator"
_TURNS = {
    "subject": _YOU,
    "integration_admin": _ADMIN,
    "permit_admin": _ADMIN,
    "caller": _ADMIN,
    "time": _TIME,
    "operator": _OPERATOR,
}
_TURNS_OF_KINDS: Mapping[type[EvergrantError], str] = {
    ReconnectNeeded: _YOU,
    ClientMisconfigured: _ADMIN,
    Denied: _ADMIN,
    BadRequest: _ADMIN,
    ProviderUnavailable: _TIME,
}
_BY_TURN = {
    _YOU: "{title} has to be connected again.",
    _ADMIN: "The way to {title} isn't set up here as it should be.",
    _TIME: "{title} doesn't answer at the moment.",
    _OPERATOR: "{title} can't be reached from here at the moment.",
}
_NOTHING = "Nothing was connected"
_LATE = f"It took too long. {_NOTHING}: try again."
_YOURS = {
    "denied": f"Access was declined. {_NOTHING}.",
    "consent_denied": f"Access was declined. {_NOTHING}.",
    "consent_expired": _LATE,
    "confirm_expired": _LATE,
    "subject_mismatch": f"Another person came back than the one who is logged in here. {_NOTHING}.",
    "account_mismatch": "You came back with another account than the one that is connected here. "
    "Nothing was changed: try again, and choose that account.",
    "choice_required": "You haven't chosen which account to use: disconnect, connect again and choose.",
    "connection_revoked": "It was disconnected in the meantime: connect it again.",
    "revoked": "It was disconnected in the meantime: connect it again.",
    "scope_not_granted": "You gave less access than is needed: connect again, and allow all of it.",
}
_OTHERS = {
    _ADMIN: "client_rejected reply_unreadable discovery_failed egress_refused api_unknown not_permitted "
    "app_disabled connection_held scope_not_permitted source_not_permitted id_jag_refused binding_required "
    "made_by_another_app invalid_request",
    _TIME: "provider_unreachable provider_error provider_rate_limited refresh_pending worker_busy",
    _OPERATOR: "host_not_accepted tenant_disabled store_unavailable store_conflict schema_mismatch "
    "store_behind key_unavailable key_denied key_gone seal_broken authority_broken audit_unavailable "
    "region_fenced region_away tenant_arriving "
    "rate_limited journal_unavailable temporal_unavailable internal unreachable protocol_error",
}
_TURNS_OF_CODES = {code: turn for turn, codes in _OTHERS.items() for code in codes.split()}


def connections_body(
    offers: Sequence[Offer],
    connections: Iterable[Connection],
    returned: str | None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The offered integrations in their order, with the person's accounts; without offers those that the
    person has connected. `returned` is the code with which a consent has come back."""
    accounts: dict[str, list[Connection]] = {}
    for connection in connections:
        if not connection.state.final:
            accounts.setdefault(connection.integration, []).append(connection)
    shown = offers or [Offer(name, name) for name in accounts]
    notice = outcome(returned) if returned else None
    return {
        "integrations": [
            {
                "integration": offer.integration,
                "title": offer.title,
                "logo": offer.logo,
                "several": offer.several,
                "accounts": [_account(row, offer.title) for row in accounts.get(offer.integration, ())],
            }
            for offer in shown
        ],
        "headers": dict(headers or {}),
        "notice": None if notice is None else notice._asdict(),
    }


def outcome(code: str) -> Notice:
    """How a consent ended, by the code that came back with the browser."""
    if code == State.ACTIVE:
        return Notice("connected", None, "It is connected.")
    if code == State.PENDING_CONSENT:
        return Notice("pending", _TIME, "It will be connected in a moment.")
    turn = _TURNS_OF_CODES.get(code)
    if turn is not None:
        return Notice("failed", turn, f"{_NOTHING}. " + _BY_TURN[turn].format(title="It"))
    return Notice("failed", _YOU, _YOURS.get(code, f"{_NOTHING}: try again."))


def failure(error: EvergrantError, offers: Iterable[Offer] = (), integration: str | None = None) -> Notice:
    """Why a request of the page failed, for its person. The error's own words are for developers."""
    turn = next((turn for kind, turn in _TURNS_OF_KINDS.items() if isinstance(error, kind)), _OPERATOR)
    if turn == _YOU and error.code in _YOURS:
        return Notice("failed", turn, _YOURS[error.code])
    titles = (offer.title for offer in offers if offer.integration == integration)
    return Notice("failed", turn, _BY_TURN[turn].format(title=next(titles, integration or "Evergrant")))


def _account(connection: Connection, title: str) -> dict[str, Any]:
    status, turn, reason = _state(connection, title)
    return {
        "label": connection.label,
        "account": connection.account,
        "status": status,
        "turn": turn,
        "reason": reason,
    }


def _state(connection: Connection, title: str) -> tuple[str, str | None, str | None]:
    """Status, whose turn it is, and why."""
    turn = _TURNS.get(connection.repairer or "")
    match connection.state:
        case State.REVOKING:
            return "ending", _TIME, f"{title} is being told to end the access."
        case State.PENDING_CONSENT if turn in (_ADMIN, _OPERATOR, _TIME):
            return "pending", turn, _BY_TURN[turn].format(title=title)
        case State.PENDING_CONSENT:
            return "pending", _YOU, "You haven't finished connecting it."
        case State.NEEDS_REAUTH:
            return "reconnect", _YOU, f"{title} no longer accepts the access that you gave."
        case _ if connection.reason == "choice_required":
            return "choose", _YOU, _YOURS["choice_required"]
        case _ if connection.reason == "connection_held":
            return "failing", _ADMIN, "It is stopped for now."
        case _ if connection.failing_since is not None and turn is not None:
            return "failing", turn, _BY_TURN[turn].format(title=title)
        case _:
            return "connected", None, None
