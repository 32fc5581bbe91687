"""Answers questions page by page: each page is a transaction with the place where the next one begins.

A worker that is killed anywhere is followed by another, which goes on there.
"""

from bisect import bisect_right
from collections.abc import Sequence

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry, AuditRecord
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.questions import AnswerProgress, AnswerQuestion
from evergrant_server.core.questions.questions import USES, AnswerPage, Question, QuestionKind, QuestionState
from evergrant_server.core.questions.uses import AppUses, sum_up
from evergrant_server.store import Store, Transaction
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.store.erasure.rows import names
from evergrant_server.store.questions.questions import UsedConnection
from evergrant_server.telemetry.alarms import report_broken_authority

_CONNECTIONS = 25  # of a page
_RECORDS = 500  # of one read
_VERIFIED_AT_ONCE = 20_000  # records of a page: about half a second
# where the answer about a subject is: its rows, then its connections by id, then the whole log
_OF_CONNECTIONS, _OF_LOG = "connections:", "log:"


class QuestionActivities:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ANSWER_QUESTION.name)
    async def answer_question(self, request: AnswerQuestion) -> AnswerProgress:
        """Write the pages of the answer that are missing. Nothing is left to do for an unknown question."""
        progress = AnswerProgress(done=True)
        objects: frozenset[str] | None = None  # of the log, that this worker has looked for once
        verification: audit.LogVerification | None = None
        async with heartbeating(lambda: progress):
            while True:
                async with self._store.read() as tx:
                    question = await tx.questions.get(request.tenant, request.question_id)
                if question is None:
                    return AnswerProgress(done=True)
                progress = _progress(question)
                if progress.done:
                    return progress
                if question.kind is QuestionKind.INCIDENT:
                    objects = await self._touched(question) if objects is None else objects
                    page = await self._page_of_uses(question, sorted(objects))
                elif question.kind is QuestionKind.LOG:
                    verification = verification or self._verification(question)
                    await self._verify_some(question, verification)
                    continue
                elif question.kind is not QuestionKind.SUBJECT:
                    page = await self._page_of_uses(question)
                elif question.after.startswith(_OF_LOG):
                    objects = await self._objects(question) if objects is None else objects
                    page = await self._page_of_log(question, objects)
                else:
                    page = await self._page_of_rows(question)
                await self._write(question, page)

    async def _write(self, question: Question, page: AnswerPage) -> None:
        now = self._clock.now()
        await commit_with_retries(self._store, lambda tx: tx.questions.write_page(question, page, now))

    # --- who was handed what -------------------------------------------------------------

    async def _touched(self, question: Question) -> frozenset[str]:
        """The connections of which something was handed out in the time, from every record of it: what an
        incident touched has to be exact, and last uses are written a moment later."""
        window = audit.Window(question.since, question.until, actions=USES)
        touched: set[str] = set()
        after: str | None = None
        while True:
            async with self._store.read() as tx:
                records = await audit.page(tx, question.tenant, window=window, after=after, limit=_RECORDS)
            touched.update(
                record.object
                for record in records
                if question.app_id in (None, record.detail.get("app") or question.app_id)
            )
            if len(records) < _RECORDS:
                return frozenset(touched)
            after = audit.page_cursor(records[-1])

    async def _page_of_uses(self, question: Question, among: Sequence[str] | None = None) -> AnswerPage:
        """The uses of the next connections, of those that are named, and before the first ones what was
        exported."""
        page = AnswerPage()
        async with self._store.read() as tx:
            if not question.after and question.kind is QuestionKind.INCIDENT:
                for export in await tx.uses.exports(question):
                    facts = {**export, "created_at": export["created_at"].isoformat()}
                    page.add("export", None, facts)
            connections, last = await self._next_connections(tx, question, among)
            apps = await tx.uses.apps(question.tenant)
        for connection in connections:
            sums = await self._uses_of(question, connection, page)
            for app_id, uses in sorted(sums.items()):
                of = {**connection._asdict(), "app_id": app_id, "app": apps.get(app_id)}
                page.add("use", connection.id, {**of, **uses.facts()})
        page.connections = len(connections)
        page.after = last
        return page

    @staticmethod
    async def _next_connections(
        tx: Transaction, question: Question, among: Sequence[str] | None
    ) -> tuple[list[UsedConnection], str | None]:
        """The next connections of a question, and the id behind which more follow; None: none does."""
        if among is None:
            connections = await tx.uses.connections(question, question.after, _CONNECTIONS)
            return connections, connections[-1].id if len(connections) == _CONNECTIONS else None
        start = bisect_right(among, question.after)
        ids = among[start : start + _CONNECTIONS]
        connections = await tx.uses.named(question, ids)
        return connections, ids[-1] if start + _CONNECTIONS < len(among) else None

    async def _uses_of(
        self, question: Question, connection: UsedConnection, page: AnswerPage
    ) -> dict[str, AppUses]:
        """The sums of a connection's uses in the time, by app, from all its records there."""
        sums: dict[str, AppUses] = {}
        window = audit.Window(question.since, question.until)
        after: str | None = None
        while True:
            async with self._store.read() as tx:
                records = await audit.page(
                    tx, question.tenant, window=window, object=connection.id, after=after, limit=_RECORDS
                )
            sum_up(sums, records, question.app_id)
            page.records += len(records)
            if len(records) < _RECORDS:
                return sums
            after = audit.page_cursor(records[-1])

    # --- the log itself ------------------------------------------------------------------

    def _verification(self, question: Question) -> audit.LogVerification:
        return audit.LogVerification(
            self._store, question.tenant, whole=False, id=question.id, place=question.after
        )

    async def _verify_some(self, question: Question, verification: audit.LogVerification) -> None:
        """Verify the next records. The last page is written with a record of what was found."""
        page, before = AnswerPage(), verification.read
        while not verification.done and verification.read - before < _VERIFIED_AT_ONCE:
            for shard, head in await verification.advance():
                page.add("shard", None, {"shard": shard, **head._asdict()})
        page.records = verification.read - before
        if not verification.done:
            page.after = verification.place
            await self._write(question, page)
            return
        if verification.flaw is not None:
            shard, flaw = verification.flaw
            page.add(
                "flaw", None, {"shard": shard, "index": flaw.seq, "kind": flaw.kind, "problem": flaw.why}
            )
            report_broken_authority(authority_broken("audit", f"{question.tenant}/{shard}/{flaw.seq}"))
        await commit_with_retries(self._store, lambda tx: self._end(tx, question, page, verification))

    async def _end(
        self, tx: Transaction, question: Question, page: AnswerPage, verification: audit.LogVerification
    ) -> None:
        """Write the last page, and record the verdict: the next verification begins behind it."""
        await tx.questions.write_page(question, page, self._clock.now())
        detail: dict[str, object] = {"ok": verification.flaw is None, "records": verification.records}
        if verification.flaw is None:
            detail |= await verification.mark(tx)
        else:
            detail |= page.items[-1][2]
        entry = AuditEntry(
            tenant=question.tenant,
            at=self._clock.now(),
            action=AuditAction.LOG_VERIFIED,
            object=question.tenant,
            context=RequestContext(by=question.by, trace_id=question.trace_id),
            detail=detail,
        )
        await audit.append(tx, entry)

    # --- all of a subject ----------------------------------------------------------------

    async def _page_of_rows(self, question: Question) -> AnswerPage:
        """The rows that name the subject, and in later pages its next connections with what is theirs."""
        page, subject = AnswerPage(), question.subject or ""
        async with self._store.read() as tx:
            if not question.after:
                for kind, facts in await tx.personal_facts.of_subject(question.tenant, subject):
                    page.add(kind, None, facts)
                page.after = _OF_CONNECTIONS
                return page
            after = question.after.removeprefix(_OF_CONNECTIONS)
            rows = await tx.personal_facts.connections(question.tenant, subject, after, _CONNECTIONS)
            for kind, facts in rows:
                id = ConnectionId(str(facts["id"]))
                page.add(kind, id, facts)
                for part, more in await tx.personal_facts.of_connection(question.tenant, id):
                    page.add(part, id, more)
        page.connections = len(rows)
        page.after = f"{_OF_CONNECTIONS}{rows[-1][1]['id']}" if len(rows) == _CONNECTIONS else _OF_LOG
        return page

    async def _objects(self, question: Question) -> frozenset[str]:
        """The ids of what the records about the subject are about; its own name is one."""
        subject, objects, after = question.subject or "", {question.subject or ""}, ""
        while True:
            async with self._store.read() as tx:
                if not after:
                    objects.update(await tx.personal_rows.objects_of_subject(question.tenant, subject))
                rows = await tx.personal_facts.connections(question.tenant, subject, after, _CONNECTIONS)
                for _, facts in rows:
                    id = ConnectionId(str(facts["id"]))
                    objects.update(await tx.personal_rows.objects_of_connection(question.tenant, id))
            if len(rows) < _CONNECTIONS:
                return frozenset(objects)
            after = str(rows[-1][1]["id"])

    async def _page_of_log(self, question: Question, objects: frozenset[str]) -> AnswerPage:
        """The next records of the tenant's log, those among them that are about the subject or name it."""
        page, after = AnswerPage(), question.after.removeprefix(_OF_LOG)
        async with self._store.read() as tx:
            records = await audit.page(tx, question.tenant, after=after or None, limit=_RECORDS)
        subject = question.subject or ""
        for record in records:
            if record.object in objects or names(record.detail, subject):
                connection = record.object if record.object.startswith("con_") else None
                page.add("record", connection, _facts_of(record))
        page.records = len(records)
        page.after = f"{_OF_LOG}{audit.page_cursor(records[-1])}" if len(records) == _RECORDS else None
        return page


def _progress(question: Question) -> AnswerProgress:
    counts = {"connections": question.connections, "records": question.records, "items": question.items}
    return AnswerProgress(**counts, done=question.state is QuestionState.ANSWERED)


def _facts_of(record: AuditRecord) -> dict[str, object]:
    return {
        "at": record.at.isoformat(),
        "action": record.action.value,
        "object": record.object,
        "by": record.context.by,
        "detail": record.detail,
        "record": f"{record.shard}/{record.seq}",
    }
