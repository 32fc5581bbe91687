"""Asks a question over HTTP, has a worker's activity answer it, and reads the answer page by page."""

from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.questions import QuestionActivities
from evergrant_server.core.messages.questions import AnswerProgress, AnswerQuestion
from tests.fakes.api import Api

QUESTIONS = "/v1/questions"


async def asked(api: Api, key: str, question: str, **about: Any) -> dict[str, Any]:
    answer = await api.post(QUESTIONS, key, {"question": question, **about})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def worked(api: Api, question: dict[str, Any]) -> AnswerProgress:
    """What the message in the outbox has a worker do."""
    (payload,) = [sent.payload for sent in await api.outbox() if sent.name == "answer_question"]
    request = AnswerQuestion.model_validate(payload)
    assert request.question_id == question["id"]
    activities = QuestionActivities(api.worker, api.clock)
    return await ActivityEnvironment().run(activities.answer_question, request)


async def lines_of(api: Api, key: str, question: dict[str, Any], limit: int = 100) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    path = f"{QUESTIONS}/{question['id']}/answer"
    more: dict[str, Any] = {"limit": limit}
    while True:
        page = (await api.get(path, key, params=more)).json()
        lines += page["items"]
        if page["next_cursor"] is None:
            return lines
        more["cursor"] = page["next_cursor"]


async def answered(api: Api, key: str, kind: str, **about: Any) -> list[dict[str, Any]]:
    question = await asked(api, key, kind, **about)
    progress = await worked(api, question)
    assert progress.done
    lines = await lines_of(api, key, question, limit=2)
    assert len(lines) == progress.items
    return lines
