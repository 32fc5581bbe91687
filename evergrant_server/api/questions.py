"""`/v1/questions`: what a worker answers from the whole log, and `GET /v1/access/unused`.

Who used this connection; what did this app reach; which tokens were handed out between two moments;
everything about a subject; is the audit log whole. What changed in permissions is `GET /v1/access/changes`.
"""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field, model_validator
from starlette.responses import Response

from evergrant_server.api.http.call import ApiCall, AuditorCall, AuditorCommand, CommandResponse
from evergrant_server.api.http.cursors import moment_place
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Slug,
    Subject,
    UtcDatetime,
    View,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, QuestionId, is_id, new_id
from evergrant_server.core.messages.jobs import ANSWER_QUESTION
from evergrant_server.core.messages.questions import AnswerQuestion
from evergrant_server.core.outbox import job_message
from evergrant_server.core.questions.questions import KEPT, MOST_OPEN, Question, QuestionKind, QuestionState
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["questions"])
access_router = APIRouter(tags=["apps"])

_RETRY_AFTER = 30.0
_AppOrId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")]
# of each kind: what it needs, and what may narrow it
_NEEDS: dict[QuestionKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    QuestionKind.CONNECTION_USES: (("connection_id",), ("app", "since", "until")),
    QuestionKind.APP_REACH: (("app",), ("integration", "since", "until")),
    QuestionKind.INCIDENT: (("since",), ("app", "integration", "until")),
    QuestionKind.SUBJECT: (("subject",), ()),
    QuestionKind.LOG: ((), ()),
}
_PARTS = ("connection_id", "app", "integration", "subject", "since", "until")


class QuestionBody(Body):
    """A question. `connection_uses` needs a `connection_id`: who used it. `app_reach` needs an `app`, by its
    name or its id: what it was handed. `incident` needs `since`: which tokens were handed out. `subject`
    needs a `subject`: everything about it. `log` needs nothing: a worker verifies the whole audit log. Each
    use happened from `since` on and before `until`.
    """

    question: QuestionKind
    connection_id: str | None = Field(default=None, max_length=64)
    app: _AppOrId | None = None
    integration: Slug | None = None
    subject: Subject | None = None
    since: UtcDatetime | None = None
    until: UtcDatetime | None = None

    @model_validator(mode="after")
    def _whole(self) -> "QuestionBody":
        needed, more = _NEEDS[self.question]
        said = {name for name in _PARTS if getattr(self, name) is not None}
        if missing := [name for name in needed if name not in said]:
            raise ValueError(f"the question {self.question} needs {', '.join(missing)}")
        if beyond := sorted(said - {*needed, *more}):
            raise ValueError(f"the question {self.question} takes no {', '.join(beyond)}")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError("until must be after since")
        return self


class QuestionView(View):
    """A question and how far its answer is: `connections` and `records` were looked at, `items` are the
    lines of the answer. It is kept until `expires_at`. `app` is a name, or the id of one that is gone."""

    id: str
    question: QuestionKind
    connection_id: str | None
    app: str | None
    integration: str | None
    subject: str | None
    since: datetime | None
    until: datetime | None
    by: str
    state: QuestionState
    connections: int
    records: int
    items: int
    created_at: datetime
    answered_at: datetime | None
    expires_at: datetime


class AnswerLineView(View):
    """A line of an answer. `kind` `use`: what one app was handed of one connection; `export`: an export in
    that time; `record`: an audit record that is about the subject; `shard`: one whose records are all good;
    `flaw`: the first record that isn't; else what is stored about the subject, by the name of its table. No
    line has a token or a secret."""

    number: int
    kind: str
    connection_id: str | None
    facts: dict[str, Any]


@router.post("/v1/questions", status_code=202, response_model=QuestionView)
async def ask_question(body: QuestionBody, call: AuditorCommand) -> Response:
    """Have a worker answer a question, page by page; that it was asked is recorded."""

    async def ask(tx: Transaction) -> CommandResponse:
        await tx.take_turns(f"questions:{call.tenant}")
        if await tx.questions.count_running(call.tenant) >= MOST_OPEN:
            why = f"{MOST_OPEN} questions are being answered: wait until one is."
            raise Failure(ErrorCode.RATE_LIMITED, why, retry_after=_RETRY_AFTER)
        question = await _question(tx, call, body)
        await tx.questions.add(question)
        request = AnswerQuestion(tenant=call.tenant, question_id=question.id, context=call.context)
        await tx.outbox.add(job_message(call.tenant, ANSWER_QUESTION, request, call.now))
        asked = body.model_dump(mode="json", exclude_none=True)
        await call.record(tx, AuditAction.QUESTION_ASKED, question.id, **asked)
        return CommandResponse.of(_view(question, await tx.uses.apps(call.tenant)), 202)

    response = await call.run(body, ask)
    call.api.relay.notify()
    return response


async def _question(tx: Transaction, call: ApiCall, body: QuestionBody) -> Question:
    """The row of a question. Raises Failure NOT_FOUND for a connection or an app that isn't there."""
    connection_id = None if body.connection_id is None else ConnectionId(body.connection_id)
    if connection_id is not None:
        require_found(await tx.connections.get(call.tenant, connection_id))
    app_id = None
    if body.app is not None:
        if is_id(body.app, "app"):  # also of an app that is gone
            app_id = AppId(body.app)
        else:
            app_id = require_found(await tx.access.app_by_name(call.tenant, body.app)).id
    return Question(
        tenant=call.tenant,
        id=QuestionId(new_id("qst")),
        kind=body.question,
        connection_id=connection_id,
        app_id=app_id,
        integration=body.integration,
        subject=body.subject,
        since=body.since,
        until=body.until,
        by=call.context.by,
        trace_id=call.context.trace_id,
        created_at=call.now,
        expires_at=call.now + KEPT,
    )


@router.get("/v1/questions")
async def list_questions(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[QuestionView]:
    """The tenant's questions of the last week, the newest first."""
    listing = call.listing("questions", limit, cursor)
    async with call.api.store.read() as tx:
        questions = await tx.questions.page(call.tenant, listing.after_moment, listing.most)
        apps = await tx.uses.apps(call.tenant)
    views = [_view(question, apps) for question in questions]
    return listing.page(views, questions, lambda question: moment_place(question.created_at, question.id))


@router.get("/v1/questions/{question_id}")
async def get_question(question_id: str, call: AuditorCall) -> QuestionView:
    """How far an answer is."""
    async with call.api.store.read() as tx:
        question = require_found(await tx.questions.get(call.tenant, QuestionId(question_id)))
        return _view(question, await tx.uses.apps(call.tenant))


@router.get("/v1/questions/{question_id}/answer")
async def get_answer(
    question_id: str, call: AuditorCall, limit: PageLimit = 100, cursor: PageCursor = None
) -> Page[AnswerLineView]:
    """The lines of an answer, in their order, as far as they are there."""
    listing = call.listing("answer", limit, cursor, of=question_id)
    async with call.api.store.read() as tx:
        question = require_found(await tx.questions.get(call.tenant, QuestionId(question_id)))
        lines = await tx.questions.answer(question, int(listing.after or 0), listing.most)
    return listing.page(list(map(AnswerLineView.of, lines)), lines, lambda line: str(line.number))


def _view(question: Question, apps: dict[str, str]) -> QuestionView:
    app = None if question.app_id is None else apps.get(question.app_id, question.app_id)
    return QuestionView.of(question, question=question.kind, app=app)


# --- what goes unused -------------------------------------------------------------------


class UnusedConnectionView(View):
    """A connection with a grant, or that waits for its subject, which no app has leased. `used_at` is the
    last lease, to the hour; null: there was none."""

    id: str
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    created_at: datetime
    used_at: datetime | None


@access_router.get("/v1/access/unused")
async def list_unused_connections(
    call: AuditorCall,
    since: Annotated[UtcDatetime | None, Query()] = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[UnusedConnectionView]:
    """Connections that were never used; with `since` those that are older and were not used since then.
    Sorted by id; a page may be short although more follow."""
    listing = call.listing("unused", limit, cursor, since=None if since is None else since.isoformat())
    async with call.api.store.read() as tx:
        unused, last = await tx.uses.unused(call.tenant, since, listing.after or "", limit)
    views = [UnusedConnectionView(**vars(connection)) for connection in unused]
    return Page(items=views, next_cursor=None if last is None else listing.cursor_after(last))
