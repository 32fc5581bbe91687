"""What crosses Temporal about answers that came too late to be installed."""

from evergrant_server.core.ids import AttemptId
from evergrant_server.core.message import Asked, Message
from evergrant_server.core.messages import Call

SIGNAL_ANSWER_CAME_LATE = "answer_came_late"


class AnswerCameLate(Message):
    """Tokens of this attempt are kept sealed in the store, and wait to be verified."""

    attempt_id: AttemptId
    asked: Asked


class VerifyLateAnswer(Call):
    """Refresh with the late answer's own refresh token: only what still works is believed."""

    attempt_id: AttemptId
