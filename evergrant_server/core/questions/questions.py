"""Questions that a worker answers from the whole log or from every row of a subject, and where it is.

A question is asked once; a worker writes its answer page by page, and it is kept for a week.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AppId, ConnectionId, QuestionId, TenantRow

KEPT = timedelta(days=7)
MOST_OPEN = 10  # of a tenant, while workers answer them

# the records of which each says that a token, or what is made with it, was handed out
USES = (
    *(AuditAction.LEASE_ISSUED, AuditAction.DPOP_PROOF_ISSUED, AuditAction.PROXY_CALLED),
    AuditAction.CONNECTION_EXPORTED,
)


class QuestionKind(StrEnum):
    CONNECTION_USES = "connection_uses"  # who used this connection
    APP_REACH = "app_reach"  # what this app reached between two moments
    INCIDENT = "incident"  # which tokens were handed out between two moments
    SUBJECT = "subject"  # everything about a subject
    LOG = "log"  # whether the tenant's audit log is whole


class QuestionState(StrEnum):
    RUNNING = "running"
    ANSWERED = "answered"


class Question(TenantRow):
    """The row. `after` is where the answer goes on; counts are of what was looked at and what was found.

    `integration` is a name. `since` and `until` bound when a token was handed out.
    """

    id: QuestionId
    kind: QuestionKind
    connection_id: ConnectionId | None = None
    app_id: AppId | None = None
    integration: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    by: str
    trace_id: str
    state: QuestionState = QuestionState.RUNNING
    connections: int = 0
    records: int = 0
    items: int = 0
    after: str = ""
    created_at: datetime
    answered_at: datetime | None = None
    expires_at: datetime

    def page_written(self, page: "AnswerPage", now: datetime) -> "Question":
        """One more page of the answer is there; without `page.after` it was the last."""
        done = page.after is None
        return self.__replace__(
            connections=self.connections + page.connections,
            records=self.records + page.records,
            items=self.items + len(page.items),
            after=page.after or "",
            state=QuestionState.ANSWERED if done else QuestionState.RUNNING,
            answered_at=now if done else None,
        )


class AnswerItem(TenantRow):
    """One line of an answer. `facts` is JSON; it goes when its connection or the question's subject goes."""

    question_id: QuestionId
    number: int
    kind: str
    connection_id: ConnectionId | None = None
    facts: dict[str, object]


class AnswerPage:
    """What one step of an answer found: `(kind, connection, facts)` each. `after` None: it was the last."""

    def __init__(self) -> None:
        self.items: list[tuple[str, ConnectionId | None, dict[str, object]]] = []
        self.connections, self.records = 0, 0
        self.after: str | None = None

    def add(self, kind: str, connection_id: str | None, facts: dict[str, object]) -> None:
        connection = None if connection_id is None else ConnectionId(connection_id)
        self.items.append((kind, connection, facts))
