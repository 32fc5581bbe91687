"""`/console/questions`: questions and answers, unused connections, changes of access, what was noticed."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from evergrant_server.api.audit import list_access_changes
from evergrant_server.api.console.visit import ROWS, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.detections import list_detections
from evergrant_server.api.evidence import get_evidence
from evergrant_server.api.http.call import ApiCall, require_auditor
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.questions import (
    QuestionBody,
    ask_question,
    get_answer,
    get_question,
    list_questions,
    list_unused_connections,
)
from evergrant_server.core.questions.detection import DetectionKind
from evergrant_server.core.questions.evidence import Framework
from evergrant_server.core.questions.questions import QuestionKind
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_QUESTIONS = "/console/questions"
_LINES = 200  # of an answer that is read for a download, at a time
_LONGEST = 300


@router.get(_QUESTIONS)
@console_page
async def show_questions(visit: VisitDep, cursor: str = "", connection: str = "", app: str = "") -> Response:
    """The forms of all questions, and those that were asked in the last week."""
    call = await require_auditor(visit.call)
    questions = await list_questions(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "questions.html",
        "Questions",
        questions=questions.items,
        names=await visit.names_of(question.by for question in questions.items),
        connection=connection[:_LONGEST],
        app=app[:_LONGEST],
        **pages_of(_QUESTIONS, cursor, questions.next_cursor),
    )


@router.post(_QUESTIONS)
@console_page
async def ask(visit: VisitDep) -> Response:
    """Ask a question; its page shows how far the answer is."""
    fields = await visit.read_form()
    body: dict[str, Any] = {name: text for name, text in fields.items() if text}
    for name in {"since", "until"} & body.keys():
        body[name] = _utc(body[name])
    response = await ask_question(QuestionBody.model_validate(body), await require_auditor(visit.call))
    return redirect_response(f"{_QUESTIONS}/{json.loads(bytes(response.body))['id']}")


@router.get(_QUESTIONS + "/{question_id}")
@console_page
async def show_answer(visit: VisitDep, question_id: str, cursor: str = "") -> Response:
    """One question with its progress, and a page of its answer."""
    call = await require_auditor(visit.call)
    question = await get_question(question_id, call)
    lines = await get_answer(question_id, call, limit=ROWS, cursor=cursor or None)
    uses = question.question not in (QuestionKind.SUBJECT, QuestionKind.LOG)
    return visit.show(
        "answer.html",
        "Answer",
        question=question,
        lines=lines.items,
        uses=uses,
        names=await visit.names_of([question.by]),
        **pages_of(f"{_QUESTIONS}/{question_id}", cursor, lines.next_cursor),
    )


@router.get(_QUESTIONS + "/{question_id}/answer.json")
@console_page
async def download_answer(visit: VisitDep, question_id: str) -> Response:
    """The whole answer as one JSON document, for who asked: a subject, an incident's report."""
    call = await require_auditor(visit.call)
    question = await get_question(question_id, call)
    document = _document(call, question_id, question.model_dump_json())
    headers = {
        "Content-Disposition": f'attachment; filename="{question_id}.json"',
        "Cache-Control": "no-store",
    }
    return StreamingResponse(document, media_type="application/json", headers=headers)


async def _document(call: ApiCall, question_id: str, question: str) -> AsyncIterator[str]:
    yield f'{{"question": {question}, "answer": ['
    cursor, separator = None, "\n"
    while True:
        page = await get_answer(question_id, call, limit=_LINES, cursor=cursor)
        for line in page.items:
            yield separator + line.model_dump_json()
            separator = ",\n"
        cursor = page.next_cursor
        if cursor is None:
            break
    yield "\n]}\n"


@router.get("/console/unused")
@console_page
async def show_unused(visit: VisitDep, since: str = "", cursor: str = "") -> Response:
    """Connections that nothing uses."""
    call = await require_auditor(visit.call)
    moment = _utc(since) if since else None
    unused = await list_unused_connections(call, since=moment, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "unused.html",
        "Unused connections",
        unused=unused.items,
        since=since[:_LONGEST],
        **pages_of("/console/unused", cursor, unused.next_cursor, **({"since": since} if since else {})),
    )


@router.get("/console/changes")
@console_page
async def show_changes(visit: VisitDep, since: str = "", until: str = "", cursor: str = "") -> Response:
    """What changed about who may do what."""
    call = await require_auditor(visit.call)
    window = {name: text for name, text in (("since", since), ("until", until)) if text}
    moments = {name: _utc(text) for name, text in window.items()}
    changes = await list_access_changes(call, **moments, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "changes.html",
        "Changes of access",
        changes=changes.items,
        window=window,
        names=await visit.names_of(change.by for change in changes.items),
        **pages_of("/console/changes", cursor, changes.next_cursor, **window),
    )


@router.get("/console/detections")
@console_page
async def show_detections(visit: VisitDep, kind: str = "", cursor: str = "") -> Response:
    """What was noticed of uses that are unlike those before."""
    call = await require_auditor(visit.call)
    wanted = chosen(DetectionKind, kind, "kind") if kind else None
    noticed = await list_detections(call, kind=wanted, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "detections.html",
        "Detections",
        noticed=noticed.items,
        kinds=list(DetectionKind),
        kind=kind,
        **pages_of("/console/detections", cursor, noticed.next_cursor, **({"kind": kind} if kind else {})),
    )


@router.get("/console/evidence")
@console_page
async def show_evidence(visit: VisitDep, framework: str = Framework.SOC2) -> Response:
    """What the tenant can show for the controls of a framework."""
    call = await require_auditor(visit.call)
    evidence = await get_evidence(call, chosen(Framework, framework, "framework"))
    return visit.show("evidence.html", "Evidence", evidence=evidence, frameworks=list(Framework))


def _utc(text: str) -> datetime:
    """The moment of a form's field, which is in UTC. Raises Failure INVALID_REQUEST."""
    try:
        moment = datetime.fromisoformat(text.strip()[:_LONGEST])
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_request("since", "Write a date and time in UTC, such as 2026-01-31T12:00.") from None
