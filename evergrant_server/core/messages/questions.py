"""What crosses Temporal for questions and detection: ids and counts. What was found is in the store."""

from evergrant_server.core.ids import QuestionId, Tenant
from evergrant_server.core.messages.base import Message, Received, RequestMessage


class AnswerQuestion(RequestMessage):
    """Answer the question of this id, or go on with it."""

    tenant: Tenant
    question_id: QuestionId


class AnswerProgress(Message):
    """How many connections and records were looked at, and how many lines the answer has."""

    connections: int = 0
    records: int = 0
    items: int = 0
    done: bool = False


class DetectPatterns(Received):
    """Look at the records that came since the last pass."""


class DetectPatternsResult(Message):
    """Counts; `complete` false: records are left for the next pass."""

    records: int = 0
    detections: int = 0
    complete: bool = True
