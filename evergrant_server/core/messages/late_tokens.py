"""What crosses Temporal about answers that came too late to be installed."""

from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.connection import ConnectionCall

SIGNAL_LATE_TOKENS_RECEIVED = "answer_came_late"


class LateTokensReceived(Message):
    """Tokens of this attempt are kept sealed in the store, and wait to be verified."""

    attempt_id: AttemptId
    context: RequestContext


class VerifyLateTokens(ConnectionCall):
    """Refresh with the late answer's own refresh token: only what still works is believed."""

    attempt_id: AttemptId
