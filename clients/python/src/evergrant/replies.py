"""The judge: what an answer of the server means. Pure; both clients use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar, cast

from evergrant.errors import (
    KINDS,
    BadRequest,
    ClientMisconfigured,
    Denied,
    EvergrantError,
    PlatformUnavailable,
    ProtocolError,
    ProviderUnavailable,
    Unreachable,
)
from evergrant.fields import Fields
from evergrant.models import (
    AccountChoice,
    App,
    AuditRecord,
    Connection,
    ConsentRequired,
    DeviceCode,
    Lease,
    LiveStatus,
    Proof,
    Provider,
    RevocationProgress,
    State,
)

Item = TypeVar("Item")

SERVER_MAJOR = 0  # the server's major version, which this client's follows

# A server that is newer than this client may name a kind it doesn't know: the status is left.
_BY_STATUS: Mapping[int, type[EvergrantError]] = {
    403: Denied,
    424: ClientMisconfigured,
    429: ProviderUnavailable,
}
_GATEWAY = frozenset({429, 502, 503, 504})
_STANDARD = frozenset(
    {"type", "title", "status", "detail", "instance", "code", "kind", "retry_after", "repair"}
)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as it came. `headers` have lower-case names; the body may hold a token."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list; `next_cursor` is None on the last."""

    items: tuple[Item, ...]
    next_cursor: str | None


def parse_lease(reply: Response) -> Lease | ConsentRequired:
    """200 is a lease; 409 `consent_required` is an answer too, not an error."""
    if reply.status == 409 and (needed := _consent_required(reply)):
        return needed
    body = _body(reply, "lease")
    return Lease(
        body.text("access_token"),
        token_type=body.text("token_type"),
        expires_at=body.time_or_none("expires_at"),
        scopes=body.texts("scopes"),
        generation=body.integer("generation"),
        connection_id=body.text("connection_id"),
    )


def parse_proof(reply: Response) -> Proof:
    body = _body(reply, "proof")
    return Proof(
        proof=body.text("proof"),
        htu=body.text("htu"),
        generation=body.integer("generation"),
        expires_at=body.time_or_none("expires_at"),
        connection_id=body.text("connection_id"),
    )


@dataclass(frozen=True, slots=True)
class LeaseResponse:
    """What a lease call came to, and the server's clock when it answered (RFC 9110 section 6.6.1)."""

    result: Lease | ConsentRequired
    server_time: datetime | None


def parse_lease_response(reply: Response) -> LeaseResponse:
    return LeaseResponse(parse_lease(reply), _date(reply))


def check_version(reply: Response, major: int = SERVER_MAJOR) -> None:
    """Raises ProtocolError when a server of another major version answered, whatever it said."""
    said = reply.headers.get("evergrant-version", "").strip()
    theirs = said.partition(".")[0]
    if theirs.isascii() and theirs.isdigit() and int(theirs) != major:
        raise ProtocolError(
            f"the server is Evergrant {said[:20]}, this client speaks to version {major}",
            code="version_mismatch",
            repair=f"Install the client of the server's version: pip install 'evergrant=={int(theirs)}.*'",
            status=reply.status,
        )


def parse_connection(reply: Response) -> Connection:
    return _connection(_body(reply, "connection"))


def parse_connections(reply: Response) -> Page[Connection]:
    return _page(reply, "connection", _connection)


def parse_audit(reply: Response) -> Page[AuditRecord]:
    return _page(reply, "audit item", _audit_item)


def parse_providers(reply: Response) -> Page[Provider]:
    return _page(reply, "provider", lambda item: Provider(name=item.text("name"), facts=item.members))


def parse_apps(reply: Response) -> Page[App]:
    return _page(reply, "app", _app)


def parse_body(reply: Response, what: str) -> Fields:
    """The members of an answer with a status of 2xx. Raises the error that any other stands for."""
    require_success(reply)
    return Fields.of_json(reply.body, what)


def require_success(reply: Response) -> None:
    """Nothing is read of an answer with a status of 2xx. Raises the error that any other stands for."""
    if not 200 <= reply.status < 300:
        raise error_from(reply)


def parse_page(reply: Response, what: str, item: Callable[[Fields], Item]) -> Page[Item]:
    """One page of a list, each item read by `item`."""
    body = parse_body(reply, f"{what} list")
    items = tuple(item(Fields.of(it, what)) for it in body.array("items"))
    return Page(items, body.text_or_none("next_cursor"))


def error_from(reply: Response) -> EvergrantError:
    """The error that an answer outside 2xx stands for (RFC 9457 section 3)."""
    problem = _problem(reply)
    wait = _retry_after(reply, problem)
    if problem is None or not isinstance(problem.get("code"), str):
        if reply.status in _GATEWAY:
            return Unreachable(
                f"a gateway answered HTTP {reply.status}", status=reply.status, retry_after=wait
            )
        return ProtocolError(f"HTTP {reply.status} without a problem document", status=reply.status)
    kind = problem.get("kind")
    known = KINDS.get(kind) if isinstance(kind, str) else None
    return (known or _class_of_status(reply.status))(
        _text(problem, "detail") or _text(problem, "title") or "",
        code=_text(problem, "code"),
        repair=_text(problem, "repair"),
        status=reply.status,
        retry_after=wait,
        context={name: value for name, value in problem.items() if name not in _STANDARD},
    )


def _consent_required(reply: Response) -> ConsentRequired | None:
    problem = _problem(reply)
    if problem is None or problem.get("code") != "consent_required" or "connect_url" not in problem:
        return None
    asked = Fields(problem, "problem document")
    return ConsentRequired(
        connect_url=asked.text("connect_url"),
        connection_id=asked.text("connection_id"),
        expires_at=asked.time_or_none("expires_at"),
    )


def _body(reply: Response, what: str) -> Fields:
    if not 200 <= reply.status < 300:
        raise error_from(reply)
    return Fields.of_json(reply.body, what)


def _page(reply: Response, what: str, read: Callable[[Fields], Item]) -> Page[Item]:
    body = _body(reply, f"{what} list")
    items = tuple(read(Fields.of(item, what)) for item in body.array("items"))
    return Page(items, body.text_or_none("next_cursor"))


def _connection(item: Fields) -> Connection:
    return Connection(
        id=item.text("id"),
        integration=item.text("integration"),
        provider=item.text("provider"),
        subject=item.text("subject"),
        label=item.text("label"),
        state=_state(item.text("state")),
        generation=item.integer("generation"),
        scopes=item.texts("scopes"),
        expires_at=item.time_or_none("expires_at"),
        reason=item.text_or_none("reason"),
        repairer=item.text_or_none("repairer"),
        created_at=item.time("created_at"),
        changed_at=item.time("changed_at"),
        connect_url=item.text_or_none("connect_url"),
        connect_expires_at=item.time_or_none("connect_expires_at"),
        live=_live(item.mapping("live")) if item.members.get("live") is not None else None,
        differs=item.texts("differs") if item.members.get("differs") is not None else (),
        flow=item.text_or_none("flow") or "authorization_code",
        device=_device(item.mapping("device")) if item.members.get("device") is not None else None,
        revoking=_revoking(item.mapping("revoking")) if item.members.get("revoking") is not None else None,
        metadata=dict(item.mapping("metadata")) if item.members.get("metadata") is not None else {},
        api_base_url=item.text_or_none("api_base_url"),
        choice=item.text_or_none("choice"),
        consented_with=item.text_or_none("consented_with"),
        choices=_choices(item.array("choices")) if item.members.get("choices") is not None else (),
    )


def _choices(said: list[object]) -> tuple[AccountChoice, ...]:
    items = (Fields(cast(Mapping[str, object], it) if isinstance(it, dict) else {}, "choice") for it in said)
    return tuple(AccountChoice(it.text("id"), it.text("label"), dict(it.mapping("metadata"))) for it in items)


def _device(said: Mapping[str, object]) -> DeviceCode:
    item = Fields(said, "device code")
    return DeviceCode(
        user_code=item.text("user_code"),
        verification_uri=item.text("verification_uri"),
        verification_uri_complete=item.text_or_none("verification_uri_complete"),
        expires_at=item.time("expires_at"),
    )


def _revoking(said: Mapping[str, object]) -> RevocationProgress:
    item = Fields(said, "revocation")
    return RevocationProgress(
        since=item.time_or_none("since"),
        failure=item.text_or_none("failure"),
        failed_at=item.time_or_none("failed_at"),
    )


def _live(said: Mapping[str, object]) -> LiveStatus:
    item = Fields(said, "live connection")
    return LiveStatus(
        state=_state(item.text("state")),
        generation=item.integer("generation"),
        expires_at=item.time_or_none("expires_at"),
        reason=item.text_or_none("reason"),
        repairer=item.text_or_none("repairer"),
        failures=item.integer("failures"),
        next_step=item.text("next_step"),
        next_at=item.time_or_none("next_at"),
    )


def _state(value: str) -> State:
    try:
        return State(value)
    except ValueError:
        raise ProtocolError(
            f"the connection is in a state this client doesn't know: {value[:40]!r}"
        ) from None


def _audit_item(item: Fields) -> AuditRecord:
    return AuditRecord(
        seq=item.integer("seq"),
        shard=item.text("lane"),
        at=item.time("at"),
        action=item.text("action"),
        object=item.text("object"),
        by=item.text("by"),
        trace_id=item.text("trace_id"),
        detail=item.mapping("detail"),
        workflow_run_id=item.text_or_none("workflow_run_id"),
        workflow_event_id=item.integer_or_none("workflow_event_id"),
    )


def _app(item: Fields) -> App:
    return App(
        id=item.text("id"),
        name=item.text("name"),
        disabled=item.boolean("disabled"),
        created_at=item.time("created_at"),
    )


def _problem(reply: Response) -> Mapping[str, object] | None:
    """The problem document, or None when the body isn't one."""
    if reply.headers.get("content-type", "").partition(";")[0].strip() != "application/problem+json":
        return None
    try:
        return Fields.of_json(reply.body, "problem document").members
    except ProtocolError:
        return None


def _retry_after(reply: Response, problem: Mapping[str, object] | None) -> float | None:
    """Seconds to wait: the document's own figure, else the header (RFC 9110 section 10.2.3)."""
    said = (problem or {}).get("retry_after")
    if isinstance(said, int | float) and not isinstance(said, bool) and said >= 0:
        return float(said)
    header = reply.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit():
        return float(header)
    at = _http_date(header)
    return None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())


def _date(reply: Response) -> datetime | None:
    return _http_date(reply.headers.get("date", ""))


def _http_date(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC)


def _class_of_status(status: int) -> type[EvergrantError]:
    return _BY_STATUS.get(status) or (PlatformUnavailable if status >= 500 else BadRequest)


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None
