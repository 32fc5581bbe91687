"""Whether a row was put back as it was before its end, which the audit log still tells (ADR 0064).

The log only moves forward: an earlier state of a row is authentic, but the record of its end is there. Who
deletes that record too breaks the log's chain, which `audit verify` names.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from sqlalchemy import bindparam, select, text
from sqlmodel import col

from evergrant_server.core.access import (
    App,
    AppCredential,
    AppKey,
    Approval,
    KeySession,
    Permit,
    TenantStanding,
)
from evergrant_server.core.agents.call_approvals import CallApproval
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.oauth.authorizations import AccessToken, TokenFamily
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.store.audit_tables import END_CONDITION, AuditRow
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, fetch_all


class Record(NamedTuple):
    """What a record says of an object."""

    action: AuditAction
    detail: dict[str, Any]


class _End(NamedTuple):
    """`over`: the attribute by which the row says so itself; None where the row is deleted at its end.
    `ends`: whether a record ends it, or begins it anew; None: it says nothing of that."""

    over: str | None
    ends: Callable[[Record], bool | None]


def _by(*actions: AuditAction, until: AuditAction | None = None) -> Callable[[Record], bool | None]:
    """An end by one of these actions, which a later `until` undoes."""

    def ends(record: Record) -> bool | None:
        if record.action is until:
            return False
        return True if record.action in actions else None

    return ends


def _disables(record: Record) -> bool | None:
    if record.action is AuditAction.APP_PUT:
        return bool(record.detail.get("disabled"))
    return _by(AuditAction.APP_DELETED, AuditAction.AGENT_STOPPED)(record)


_ENDS: dict[type[BaseModel], _End] = {
    TenantStanding: _End("disabled", _by(AuditAction.TENANT_DISABLED, until=AuditAction.TENANT_ENABLED)),
    App: _End("disabled", _disables),
    AppKey: _End("revoked_at", _by(AuditAction.KEY_REVOKED)),
    AppCredential: _End(None, _by(AuditAction.CREDENTIAL_DELETED)),
    Permit: _End(None, _by(AuditAction.PERMIT_DELETED)),
    Approval: _End("used_at", _by(AuditAction.APPROVAL_USED, until=AuditAction.APPROVAL_REQUESTED)),
    CallApproval: _End(
        "is_over",
        _by(
            AuditAction.CALL_APPROVAL_USED,
            AuditAction.CALL_APPROVAL_DENIED,
            AuditAction.CALL_APPROVAL_EXPIRED,
        ),
    ),
    Delegation: _End("stopped_at", _by(AuditAction.DELEGATION_STOPPED)),
    KeySession: _End(None, _by(AuditAction.SESSION_ENDED)),
    PersonSession: _End("ended_at", _by(AuditAction.SESSION_ENDED)),
    AdminLogin: _End(None, _by(AuditAction.ADMIN_LOGIN_DELETED)),
    ClientLogin: _End(None, _by(AuditAction.CLIENT_LOGIN_DELETED)),
    TrustedIssuer: _End(None, _by(AuditAction.TRUSTED_ISSUER_DELETED)),
    DelegationRule: _End(None, _by(AuditAction.DELEGATION_RULE_DELETED)),
    AccessToken: _End(None, _by(AuditAction.RESOURCE_TOKEN_REVOKED)),
    TokenFamily: _End("ended_at", _by(AuditAction.TOKEN_FAMILY_ENDED, AuditAction.TOKEN_FAMILY_REPLAYED)),
    Connection: _End("has_ended", _by(AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED)),
}
_RECORDS = (
    select(col(AuditRow.object), col(AuditRow.action), col(AuditRow.detail))
    .where(
        columns_equal(AuditRow, tenant=bindparam("tenant")),
        col(AuditRow.object).in_(bindparam("ids", expanding=True)),
        text(END_CONDITION),
    )
    .order_by(col(AuditRow.shard), col(AuditRow.seq))
)


async def put_back(connection: DatabaseConnection, models: Sequence[BaseModel]) -> list[str]:
    """The ids of those of one tenant's rows whose end the audit log tells, and which don't say so."""
    open_ones = [model for model in models if type(model) in _ENDS and not _is_over(model)]
    if not open_ones:
        return []
    by_id: dict[str, BaseModel] = {vars(model)["id"]: model for model in open_ones}
    query = _RECORDS.params(tenant=vars(open_ones[0])["tenant"], ids=sorted(by_id))
    over: dict[str, bool] = {}
    for row in await fetch_all(connection, query):
        ends = _ENDS[type(by_id[row["object"]])].ends
        said = ends(Record(AuditAction(row["action"]), json.loads(row["detail"])))
        if said is not None:
            over[row["object"]] = said
    return [id for id in by_id if over.get(id)]


def _is_over(model: BaseModel) -> bool:
    over = _ENDS[type(model)].over
    return over is not None and bool(getattr(model, over))
