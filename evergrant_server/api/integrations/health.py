"""`/v1/integrations/{name}/health`: what fails at an integration, by cause, and whose turn it is.

The store counts (`store.connections.failures`), the audit log has the provider's words, and one workflow of
each cause tells its next step. What is sent doesn't grow with the number of connections.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from fastapi import APIRouter
from pydantic import ValidationError

from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import Slug
from evergrant_server.api.integrations.models import (
    FailureCauseView,
    IntegrationHealthView,
    RefusalWordsView,
)
from evergrant_server.audit.exchanges import records_of_failures
from evergrant_server.core.access import READING_ACTIONS
from evergrant_server.core.audit import AuditRecord
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.errors.kinds import Repairer
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.provider_words import PROVIDER_SAID, ProviderWords, repair_after
from evergrant_server.core.single_use.recurring_errors import RECURS_FOR_ALONE, UNDECIDED
from evergrant_server.problems import require_found
from evergrant_server.store.connections.failures import Cause, Causes, causes_of

router = APIRouter(tags=["integrations"])

_FAILING_STATES = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
TURNS = (  # the order of the causes: what an admin repairs first
    *(Repairer.INTEGRATION_ADMIN, Repairer.OPERATOR, Repairer.PERMIT_ADMIN, Repairer.CALLER),
    *(Repairer.SUBJECT, Repairer.TIME),
)
_MOST_WORDINGS = 5  # of a cause
_DESCRIBE_TIMEOUT_S = 1.0
_REAUTHORIZE = "reauthorize"

_Records = dict[ConnectionId, AuditRecord]


@router.get("/v1/integrations/{name}/health")
async def get_integration_health(name: Slug, call: Call) -> IntegrationHealthView:
    """What fails at an integration: by cause, with the provider's words, since when, and whose turn it is."""
    call.require_permit(*READING_ACTIONS, of=await call.integration_target(name))
    async with call.api.store.read() as tx:
        integration = require_found(await tx.integrations.by_name(call.tenant, name))
        counted = await causes_of(tx.connection, call.tenant, integration.id)
        causes = sorted(_failures_in(counted), key=_turn)
        failed_at = {
            example.connection_id: example.failed_at for cause in causes for example in cause.examples
        }
        records = await records_of_failures(tx, call.tenant, failed_at)
    steps = await asyncio.gather(*(_next_step(call, cause) for cause in causes))
    return IntegrationHealthView.of(
        integration,
        active=counted.count(LifecycleState.ACTIVE),
        failing=sum(cause.connections for cause in counted.failing),
        needs_reauth=counted.count(LifecycleState.NEEDS_REAUTH),
        pending_consent=counted.count(LifecycleState.PENDING_CONSENT),
        revoking=counted.count(LifecycleState.REVOKING),
        complete=counted.complete,
        causes=tuple(
            _cause_view(cause, counted, records, step, integration.changed_at)
            for cause, step in zip(causes, steps, strict=True)
        ),
    )


def _failures_in(counted: Causes) -> Iterator[Cause]:
    """The causes of failures; a connection that is revoked, or waits for its subject's first consent, has
    none."""
    yield from counted.failing
    for cause in counted.states:
        if cause.state in _FAILING_STATES and cause.code is not None:
            yield cause


def _turn(cause: Cause) -> tuple[int, int]:
    return TURNS.index(FAILURES[_code_of(cause)].repairer), -cause.connections


def _code_of(cause: Cause) -> ErrorCode:
    return cause.code or ErrorCode.INTERNAL  # a row that failed without a reason: no version writes one


async def _next_step(call: ApiCall, cause: Cause) -> tuple[str | None, datetime | None]:
    """What comes next for the connection of this cause that failed last."""
    if cause.state is LifecycleState.NEEDS_REAUTH:
        return _REAUTHORIZE, None
    with suppress(Failure):
        newest = cause.examples[0].connection_id
        described = await call.api.link.describe(call.tenant, newest, timeout=_DESCRIBE_TIMEOUT_S)
        if described is not None:
            return described.next_step, described.next_at
    return None, None


def _cause_view(
    cause: Cause,
    counted: Causes,
    records: _Records,
    step: tuple[str | None, datetime | None],
    client_changed_at: datetime,
) -> FailureCauseView:
    rule, newest, wordings = FAILURES[_code_of(cause)], cause.examples[0], _wordings(cause, records)
    undecided_since = _undecided_since(cause, counted, records)
    next_step, next_at = step
    return FailureCauseView(
        state=cause.state,
        code=_code_of(cause),
        repairer=rule.repairer,
        meaning=rule.meaning,
        repair=repair_after(_code_of(cause), wordings[0].error if wordings else None),
        connections=cause.connections,
        since=cause.since,
        failed_at=newest.failed_at,
        connection_id=newest.connection_id,
        next_step=next_step,
        next_at=next_at,
        is_sole=undecided_since is not None,
        decided_by=None
        if undecided_since is None
        else max(undecided_since, client_changed_at) + RECURS_FOR_ALONE,
        provider_said=wordings,
    )


def _undecided_since(cause: Cause, counted: Causes, records: _Records) -> datetime | None:
    """Since when nothing but time decides about the only connection that has a grant; None: something does.

    Its refusals don't say whose turn it is, and no other connection shows whether the provider works.
    """
    alone = counted.complete and counted.count(LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH) == 1
    newest = cause.examples[0]
    record = records.get(newest.connection_id)
    asked = cause.state is LifecycleState.ACTIVE and not newest.flow.is_client_grant
    if not (alone and asked) or record is None:
        return None
    undecided = record.detail.get(UNDECIDED)
    return None if undecided is None else datetime.fromisoformat(undecided["since"])


def _wordings(cause: Cause, records: _Records) -> tuple[RefusalWordsView, ...]:
    """The most frequent of what the provider said of the cause's newest failures."""
    newest: dict[ProviderWords, AuditRecord] = {}
    counts = Counter[ProviderWords]()
    for example in cause.examples:
        record = records.get(example.connection_id)
        if record is None or PROVIDER_SAID not in record.detail:
            continue
        with suppress(ValidationError):  # a newer version wrote it
            wording = ProviderWords.model_validate(record.detail[PROVIDER_SAID])
            newest.setdefault(wording, record)
            counts[wording] += 1
    return tuple(
        RefusalWordsView.of(
            wording,
            connections=count,
            connection_id=newest[wording].object,
            at=newest[wording].at,
        )
        for wording, count in counts.most_common(_MOST_WORDINGS)
    )
