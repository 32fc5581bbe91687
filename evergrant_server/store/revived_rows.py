"""Whether a row was put back as it was before its end, which the audit log still tells (ADR 0064).

The log only moves forward: an earlier state of a row is authentic, but the record of its end is there. Who
deletes that record too breaks the log's chain, which `audit verify` names.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Executable, bindparam, select, text
from sqlmodel import col

from evergrant_server.core.access import App, AppCredential, AppKey, KeySession, Permit, TenantStanding
from evergrant_server.core.agents.delegation_rules import DelegationRule
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.decisions import Approval, CallApproval
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.oauth.authorizations import AccessToken, TokenFamily
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.crypto.root_keys import RootKey
from evergrant_server.store.audit_tables import (
    CHAINED,
    END_CONDITION,
    NO_LEASE_CONDITION,
    AuditRow,
    detail_of,
)
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all


class Record(NamedTuple):
    """What a record says of an object."""

    action: AuditAction
    detail: dict[str, Any]


# Whether the row denies what a record says; None: the record says nothing of it. The last one counts.
_Contradiction = Callable[[Record, CheckedModel], bool | None]


def _ended(over: str | None, *actions: AuditAction, until: AuditAction | None = None) -> _Contradiction:
    """An end by one of these actions, which a later `until` undoes. `over`: the attribute by which the row
    says so itself; None where the row is deleted at its end."""

    def contradicts(record: Record, model: CheckedModel) -> bool | None:
        if record.action is until:
            return False
        return _lacks(over, model) if record.action in actions else None

    return contradicts


def _enabled(record: Record, app: CheckedModel) -> bool | None:
    if record.action is AuditAction.APP_PUT:
        return bool(record.detail.get("disabled")) and _lacks("disabled", app)
    return _lacks("disabled", app) if record.action is AuditAction.AGENT_STOPPED else None


def _denies_other(record: Record, app: CheckedModel) -> bool | None:
    if record.action is not AuditAction.DENIES_CHANGED:
        return None
    return record.detail["denies"] != list(vars(app)["denies"] or ())


def _lacks(over: str | None, model: CheckedModel) -> bool:
    return over is None or not getattr(model, over)


_ENDS: dict[type[CheckedModel], tuple[_Contradiction, ...]] = {
    TenantStanding: (_ended("disabled", AuditAction.TENANT_DISABLED, until=AuditAction.TENANT_ENABLED),),
    App: (_enabled, _denies_other, _ended(None, AuditAction.APP_DELETED)),
    AppKey: (_ended("revoked_at", AuditAction.KEY_REVOKED),),
    AppCredential: (_ended(None, AuditAction.CREDENTIAL_DELETED),),
    Permit: (_ended(None, AuditAction.PERMIT_DELETED),),
    Approval: (_ended("used_at", AuditAction.APPROVAL_USED, until=AuditAction.APPROVAL_REQUESTED),),
    CallApproval: (
        _ended(
            "is_over",
            AuditAction.CALL_APPROVAL_USED,
            AuditAction.CALL_APPROVAL_DENIED,
            AuditAction.CALL_APPROVAL_EXPIRED,
        ),
    ),
    Delegation: (_ended("stopped_at", AuditAction.DELEGATION_STOPPED),),
    KeySession: (_ended(None, AuditAction.SESSION_ENDED),),
    PersonSession: (_ended("ended_at", AuditAction.SESSION_ENDED),),
    AdminLogin: (_ended(None, AuditAction.ADMIN_LOGIN_DELETED),),
    ClientLogin: (_ended(None, AuditAction.CLIENT_LOGIN_DELETED),),
    TrustedIssuer: (_ended(None, AuditAction.TRUSTED_ISSUER_DELETED),),
    DelegationRule: (_ended(None, AuditAction.DELEGATION_RULE_DELETED),),
    AccessToken: (_ended(None, AuditAction.RESOURCE_TOKEN_REVOKED),),
    TokenFamily: (_ended("ended_at", AuditAction.TOKEN_FAMILY_ENDED, AuditAction.TOKEN_FAMILY_REPLAYED),),
    Connection: (
        _ended("has_ended", AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED),
        _ended("held_by", AuditAction.CONNECTION_HELD, until=AuditAction.CONNECTION_RESTORED),
    ),
    RootKey: (_ended("retired_at", AuditAction.ROOT_RETIRED),),
}
_OF_TENANT = select(
    *(
        col(column)
        for column in (AuditRow.object, AuditRow.action, AuditRow.at, AuditRow.shard, AuditRow.seq)
    ),
    col(AuditRow.body),
).where(columns_equal(AuditRow, tenant=bindparam("tenant")))
_ENDED = text(END_CONDITION)  # records that have an index of their own
# the installation's, found by the index of all records but leases
_RETIRED = (col(AuditRow.action) == AuditAction.ROOT_RETIRED.value) & text(NO_LEASE_CONDITION)


@cache
def _records(*, of_root: bool, of_one: bool) -> Executable:
    """The records of the row `id`, or of the rows `ids`. Of one row each authenticated read asks."""
    ids = (
        col(AuditRow.object) == bindparam("id")
        if of_one
        else col(AuditRow.object).in_(bindparam("ids", expanding=True))
    )
    return _OF_TENANT.where(ids, _RETIRED if of_root else _ENDED)


async def put_back(connection: DatabaseConnection, models: Sequence[CheckedModel]) -> list[str]:
    """The ids of those of one tenant's rows that deny their end, which the audit log tells."""
    by_id: dict[str, CheckedModel] = {vars(model)["id"]: model for model in models if type(model) in _ENDS}
    if not by_id:
        return []
    of_root, ids = isinstance(models[0], RootKey), sorted(by_id)
    named: Values = {"id": ids[0]} if len(ids) == 1 else {"ids": ids}
    tenant = INSTALLATION if of_root else vars(models[0])["tenant"]
    query = _records(of_root=of_root, of_one=len(ids) == 1)
    rows = await fetch_all(connection, query, {"tenant": tenant, **named})
    contradicted: dict[tuple[str, int], bool] = {}
    for row in sorted(rows, key=_order_of):
        model = by_id[row["object"]]
        record = Record(AuditAction(row["action"]), detail_of(row["body"]))
        for place, contradicts in enumerate(_ENDS[type(model)]):
            answer = contradicts(record, model)
            if answer is not None:
                contradicted[row["object"], place] = answer
    return sorted({id for (id, _), is_contradicted in contradicted.items() if is_contradicted})


def _order_of(row: Values) -> tuple[object, ...]:
    """Records of chains are in the order of their numbers, and older than those of trees; there the ends of
    one object are in the order of their moments."""
    if row["shard"] in CHAINED:
        return False, row["shard"], row["seq"]
    return True, row["at"], row["shard"], row["seq"]
