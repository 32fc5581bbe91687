"""Attempts: the intent rows of single-use credentials. One open per connection and slot."""

from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlmodel import col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store.connections.tables import AttemptRow
from evergrant_server.store.database.rows import (
    Repository,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_all,
    fetch_model,
    fetch_models,
    find_model,
    insert,
)

_MOST_SUPERSEDED = 20  # an answer that this many later uses superseded is worth nothing
_ENDED_NOTHING = (
    AttemptOutcome.INSTALLED.value,
    AttemptOutcome.INSTALLED_LATE.value,
    AttemptOutcome.NOT_SENT.value,
)
_UNKNOWN = (AttemptOutcome.SUPERSEDED.value, AttemptOutcome.GIVEN_UP.value, AttemptOutcome.UNREAD.value)


class Attempts(Repository):
    """Attempts of one transaction."""

    async def open(self, attempt: Attempt) -> None:
        """Commit to an intent. Raises Failure STORE_CONFLICT while another is open for this slot."""
        if not await insert(self._connection, AttemptRow, column_values(attempt)):
            raise Failure(
                ErrorCode.STORE_CONFLICT,
                f"{attempt.connection_id} has an open attempt on its {attempt.slot} slot.",
                row=attempt.connection_id,
            )

    async def open_of_kind(
        self, tenant: Tenant, connection_id: ConnectionId, slot: str, kind: AttemptKind
    ) -> Attempt | None:
        """The open attempt of this kind, or None."""
        return await find_model(
            self._connection,
            Attempt,
            AttemptRow,
            tenant=tenant,
            connection_id=connection_id,
            slot=slot,
            kind=kind.value,
            outcome=None,
        )

    async def get(self, tenant: Tenant, id: AttemptId) -> Attempt | None:
        return await find_model(self._connection, Attempt, AttemptRow, tenant=tenant, id=id)

    async def open_of_any_kind(
        self, tenant: Tenant, connection_id: ConnectionId, slot: str
    ) -> Attempt | None:
        """The open attempt of this token slot, of any kind. There is at most one."""
        return await find_model(
            self._connection,
            Attempt,
            AttemptRow,
            tenant=tenant,
            connection_id=connection_id,
            slot=slot,
            outcome=None,
        )

    async def newest_of_unknown_outcome(self, wanted: Attempt) -> Attempt | None:
        """The newest use of the same credential with an unknown outcome, closed or not.

        It carries the count of them all, so that no restart and no takeover forgets a use.
        """
        unknown = or_(col(AttemptRow.outcome).is_(None), col(AttemptRow.outcome).in_(_UNKNOWN))
        newest = (col(AttemptRow.sends).desc(), col(AttemptRow.opened_at).desc())
        found = select(AttemptRow).where(_same(wanted), unknown).order_by(*newest).limit(1)
        return await fetch_model(self._connection, Attempt, found)

    async def superseded(self, tenant: Tenant, connection_id: ConnectionId, generation: int) -> list[Attempt]:
        """The newest that were taken over at this generation: their answers may come all the same."""
        over = columns_equal(
            AttemptRow,
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation,
            outcome=AttemptOutcome.SUPERSEDED.value,
        )
        newest = col(AttemptRow.opened_at).desc()
        found = select(AttemptRow).where(over).order_by(newest).limit(_MOST_SUPERSEDED)
        return await fetch_models(self._connection, Attempt, found)

    async def other_possibly_harmful_uses(self, answered: Attempt) -> list[Attempt]:
        """The newest other uses of its credential that were refused or never answered."""
        ended_nothing = col(AttemptRow.outcome).in_(_ENDED_NOTHING)
        others = or_(col(AttemptRow.outcome).is_(None), ~ended_nothing), col(AttemptRow.id) != answered.id
        newest = col(AttemptRow.opened_at).desc()
        found = select(AttemptRow).where(_same(answered), *others).order_by(newest).limit(_MOST_SUPERSEDED)
        return await fetch_models(self._connection, Attempt, found)

    async def may_be_invalidated(self, tenant: Tenant, connection_id: ConnectionId, generation: int) -> bool:
        """True when this generation was installed late, while another use of the same credential was
        refused or never answered: that use may have made the provider end this grant."""
        uses = columns_equal(
            AttemptRow,
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation - 1,
            kind=AttemptKind.REFRESH.value,
        )
        ended = [row["outcome"] for row in await fetch_all(self._connection, select(AttemptRow).where(uses))]
        return AttemptOutcome.INSTALLED_LATE in ended and any(it not in _ENDED_NOTHING for it in ended)

    async def unread_of_credential(self, wanted: Attempt) -> Attempt | None:
        """A use of the same credential whose tokens wait to be read."""
        unread = col(AttemptRow.outcome) == AttemptOutcome.UNREAD.value
        return await fetch_model(
            self._connection, Attempt, select(AttemptRow).where(_same(wanted), unread).limit(1)
        )

    async def unread_at_generation(
        self, tenant: Tenant, connection_id: ConnectionId, generation: int, *kinds: AttemptKind
    ) -> Attempt | None:
        """An attempt of these kinds (none: of any) at this generation whose tokens wait to be read."""
        unread = columns_equal(
            AttemptRow,
            tenant=tenant,
            connection_id=connection_id,
            from_generation=generation,
            outcome=AttemptOutcome.UNREAD.value,
        )
        of_kinds = col(AttemptRow.kind).in_([it.value for it in kinds or AttemptKind])
        return await fetch_model(
            self._connection, Attempt, select(AttemptRow).where(unread, of_kinds).limit(1)
        )

    async def mark_installed_late(self, taken_over: Attempt) -> None:
        """Write that what came for it was installed all the same; `closed_at` still says when another one
        took over. Raises Failure STORE_CONFLICT when its row changed meanwhile."""
        key = {"tenant": taken_over.tenant, "id": taken_over.id}
        ending = {"outcome": AttemptOutcome.INSTALLED_LATE.value}
        await compare_and_set(self._connection, AttemptRow, key, ending, taken_over.revision)

    async def close(self, attempt: Attempt, outcome: AttemptOutcome, at: datetime) -> Attempt:
        """Write how it ended, once; a second time for what was unread. Raises Failure STORE_CONFLICT when it
        was closed meanwhile."""
        if attempt.outcome not in (None, AttemptOutcome.UNREAD):
            raise Failure(ErrorCode.STORE_CONFLICT, f"{attempt.id} was closed before.", row=attempt.id)
        key = {"tenant": attempt.tenant, "id": attempt.id}
        ending = {"outcome": outcome.value, "closed_at": at}
        revision = await compare_and_set(self._connection, AttemptRow, key, ending, attempt.revision)
        return attempt.model_copy(update={"outcome": outcome, "closed_at": at, "revision": revision})


def _same(wanted: Attempt) -> ColumnElement[bool]:
    """Uses of this very credential."""
    return columns_equal(
        AttemptRow,
        tenant=wanted.tenant,
        connection_id=wanted.connection_id,
        from_generation=wanted.from_generation,
        slot=wanted.slot,
        kind=wanted.kind.value,
        credential=wanted.credential,
    )
