"""Questions, answered by a worker and not yet, and what was noticed: for the console's pages."""

from datetime import datetime, timedelta

from temporalio.testing import ActivityEnvironment

from activities.questions import QuestionActivities
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import DetectionId, QuestionId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.questions import AnswerQuestion
from evergrant_server.core.questions.detection import Detection, DetectionKind
from tests.fakes.api import TENANT, Api


async def questions_of(api: Api, key: str, told: Connection, noon: datetime) -> tuple[str, str]:
    """One about uses and one about a subject, answered; one that is being answered; and what was noticed."""
    used = {"integration": told.integration, "subject": told.subject, "label": told.label}
    await api.post("/v1/lease", key, used)
    await api.parts.ledger.stop()  # last uses are written with the last batch
    await api.parts.ledger.start()
    ids: list[str] = []
    for body in (
        {"question": "connection_uses", "connection_id": told.id},
        {"question": "subject", "subject": told.subject},
        {"question": "incident", "since": "2026-03-18T09:00:00Z", "integration": "crm"},
    ):
        ids.append((await api.post("/v1/questions", key, body)).json()["id"])
    worker = QuestionActivities(api.worker, api.clock)
    for id in ids[:2]:
        request = AnswerQuestion(
            tenant=TENANT, question_id=QuestionId(id), context=RequestContext(by="app:console")
        )
        await ActivityEnvironment().run(worker.answer_question, request)
    app = await api.app_named("crm-sync")
    found = (
        (DetectionKind.BULK_READS, {"connections": 412, "usual": 36}, None),
        (DetectionKind.AFTER_SILENCE, {"used_before": "2025-11-02T08:00:00+00:00", "days": 136}, told.id),
        (
            DetectionKind.REPEATED_REFUSALS,
            {"refused": 140, "codes": {"not_found": 139}},
            None,
        ),
        (DetectionKind.NEW_NETWORK, {"network": "203.0.113.0/24"}, None),
    )
    async with api.worker.write() as tx:
        for hours, (kind, facts, connection) in enumerate(found):
            detection = Detection(
                tenant=TENANT,
                id=DetectionId(new_id("det")),
                kind=kind,
                object=connection or app.id,
                connection_id=connection,
                app_id=app.id,
                at=noon - timedelta(hours=hours),
                facts=facts,
            )
            await tx.detections.add(detection)
    return ids[0], ids[1]
