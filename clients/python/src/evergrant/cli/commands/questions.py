"""`evergrant questions`, `detections`, `audit evidence`: who used what, all of a subject, what is unlike."""

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from cyclopts import App

from evergrant.api.models import AnswerLine, Question
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, Row, show_one, show_rows
from evergrant.retries import Deadline
from evergrant.sync_client import Evergrant

_WAIT = timedelta(minutes=10)  # for a worker; it goes on without this command
_EVERY_S = 0.5
_QUESTIONS = ("id", "question", "state", "connections", "records", "items", "by", "created_at")
_USES = (
    *("app", "connection_id", "subject", "integration", "uses", "first_at", "last_at"),
    *("first_generation", "last_generation", "scopes", "permits"),
)
SHARDS = ("shard", "size", "root")  # of a verified log
_FACTS = ("kind", "connection_id", "facts")
_TITLES = {"soc2": "SOC 2", "iso27001": "ISO 27001, Annex A"}
_DETECTIONS = ("at", "kind", "app", "object", "facts")

questions = App(name="questions")


@questions.command
def uses(
    connection_id: str,
    /,
    *,
    app: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Who used this connection: each app with what it was handed, how often, when first and last.

    Args:
        app: Only this app: its name, or the id of one that is gone.
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
        until: The moment before which it happened.
    """
    _ask_uses(options, "connection_uses", since, until, connection_id=connection_id, app=app)


@questions.command
def reach(
    app: str,
    /,
    *,
    integration: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """What this app reached between two moments: the connections of which it was handed tokens.

    Args:
        app: Its name, or the id of one that is gone.
        integration: Only connections of this integration.
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
        until: The moment before which it happened.
    """
    _ask_uses(options, "app_reach", since, until, app=app, integration=integration)


@questions.command
def incident(
    *,
    since: datetime,
    until: datetime | None = None,
    app: str | None = None,
    integration: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Which tokens an incident touched: those that were handed out between two moments, and exports.

    Args:
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
        until: The moment before which it happened.
        app: Only what this app was handed.
        integration: Only connections of this integration.
    """
    _ask_uses(options, "incident", since, until, app=app, integration=integration)


@questions.command
def subject(subject: str, /, *, options: Options = DEFAULTS) -> None:
    """Print everything about a subject: connections, consents, delegations, approvals, sessions, records.

    Without a token or a secret; `-o json` for the subject's own request to see it.
    """
    with options.client() as client:
        asked = wait_for_answer(client, client.ask_question("subject", subject=subject))
        show_rows(client.answer(asked.id), _FACTS, options.output)


@questions.command(name=("ls", "list"))
def list_questions(*, options: Options = DEFAULTS) -> None:
    """List the questions of the last week, the newest first."""
    with options.client() as client:
        show_rows(client.questions(), _QUESTIONS, options.output)


@questions.command
def answer(question_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Print the answer to a question of the last week, as far as it is there."""
    with options.client() as client:
        question = client.question(question_id)
        if question.state != "answered":
            show_one(question, options.output)
        elif question.question in ("subject", "log"):
            show_rows(client.answer(question_id), _FACTS, options.output)
        else:
            show_rows(map(_use, client.answer(question_id)), _USES, options.output)


def detections(
    *, kind: str | None = None, since: datetime | None = None, options: Options = DEFAULTS
) -> None:
    """List what was noticed of uses that are unlike those before, the newest first.

    Args:
        kind: bulk_reads, after_silence, repeated_refusals, new_network, shared_account,
            unconfirmed_consents or token_replayed.
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
    """
    with options.client() as client:
        show_rows(client.detections(kind=kind, since=_in_utc(since)), _DETECTIONS, options.output)


def evidence(*, framework: Literal["soc2", "iso27001"], options: Options = DEFAULTS) -> None:
    """Print for each control what the installation can show now and what it can't: Markdown, or `-o json`.

    Args:
        framework: soc2: the Trust Services Criteria; iso27001: Annex A of 2022.
    """
    with options.client() as client:
        shown = client.evidence(framework)
    if options.output is not Format.TABLE:
        show_one(shown, options.output)
        return
    print(f"# Evidence: {_TITLES.get(shown.framework, shown.framework)}, tenant {shown.tenant}\n")
    print(f"As of {shown.at:%Y-%m-%d %H:%M %Z}; counts of the past since {shown.since:%Y-%m-%d}.")
    for control in shown.controls:
        print(f"\n## {control.control} {control.title}\n")
        for each in control.shown_by:
            print(f"- {each.topic}: {_facts(each.answer)}. `{each.query}`, `{each.command}`")
        print("\nCan't be shown:" if control.lacks else "\nCan't be shown: nothing that is known here.")
        for line in control.lacks:
            print(f"- {line}")


def _facts(value: Any) -> str:
    """`permits 3, changes (permit.put 2)`."""
    if not isinstance(value, Mapping):
        return str(value)
    answer = cast("Mapping[str, Any]", value)
    texts = (
        f"{name.replace('_', ' ')} {f'({_facts(inner)})' if isinstance(inner, Mapping) else inner}"
        for name, inner in answer.items()
    )
    return ", ".join(texts) or "none"


def _ask_uses(
    options: Options, kind: str, since: datetime | None, until: datetime | None, **about: str | None
) -> None:
    with options.client() as client:
        since, until = _in_utc(since), _in_utc(until)
        asked = wait_for_answer(client, client.ask_question(kind, **about, since=since, until=until))
        show_rows(map(_use, client.answer(asked.id)), _USES, options.output)


def wait_for_answer(client: Evergrant, question: Question) -> Question:
    """The question once a worker has answered it, or as it is after a while."""
    deadline = Deadline(_WAIT)
    while question.state != "answered" and deadline.seconds_left() > 0:
        time.sleep(_EVERY_S)
        question = client.question(question.id)
        if sys.stderr.isatty():
            print(f"\r{question.records} records looked at", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if question.state != "answered":
        print(f"evergrant: not whole yet: evergrant questions answer {question.id}", file=sys.stderr)
    return question


def _use(line: AnswerLine) -> Row:
    """A line about one app and one connection; about an export with its id in the connection's place."""
    facts = dict(line.facts)
    if line.kind == "export":
        return {"kind": line.kind, "app": facts.get("by"), "connection_id": facts.get("id"), **facts}
    return {"kind": line.kind, "connection_id": line.connection_id, **facts}


def _in_utc(at: datetime | None) -> datetime | None:
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)
