"""The methods of both clients whose arguments differ from the document's, and what they return."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from httpx2 import Response

from evergrant.api import leases
from evergrant.api.call import (
    Call,
    LinesPage,
    Page,
    bytes_of,
    error_from,
    list_or_none,
    object_parser,
    page_parser,
    parse_audit_page,
    parse_body,
    parse_report_page,
    path_of,
    post,
    require_success,
    seconds_or_none,
    without_none,
)
from evergrant.api.fields import Fields
from evergrant.api.methods import built, built_list
from evergrant.api.models import AuditRecord, CallApproval, Connection, Export, Incident, Integration
from evergrant.api.operations import Operations
from evergrant.errors import BadRequest, ProtocolError
from evergrant.identity.access_tokens import ACCESS_TOKEN, TOKEN_PATH
from evergrant.models import Provider

_LINES_PER_PAGE = 200
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_REPAIR = "See docs/guide/delegation.md: evergrant delegations rules ls shows whose tokens count."
SubjectToken = Literal["id_token", "access_token"]
Headers = Mapping[str, str] | Sequence[tuple[str, str]]  # a sequence: where a name comes twice


@dataclass(frozen=True, slots=True)
class Delegated:
    """A token that acts for one subject: `Evergrant(api_key=delegated.token)` leases with it.

    `scope` None: no bound but the permits. `session_id` is the root of its tree.
    """

    token: str = field(repr=False)
    expires_in: int
    delegation_id: str
    session_id: str
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class SealedPage:
    """A page of an export: compact JWEs (RFC 7516). `exported` is the number of all lines."""

    lines: tuple[str, ...]
    exported: int


class ApiMethods(Operations):
    """Methods of `Evergrant` that block, and of `AsyncEvergrant` that are awaited."""

    proof = built(leases.proof)
    sign = built(leases.sign)

    @built
    def connect(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        scopes: tuple[str, ...] | None = None,
        return_to: str | None = None,
        flow: str | None = None,
        resources: tuple[str, ...] = (),
        audience: str | None = None,
        choice: str | None = None,
        slot_scopes: Mapping[str, tuple[str, ...]] | None = None,
        challenge: str | None = None,
        expect: Mapping[str, str] | None = None,
        login_hint: str | None = None,
    ) -> Call[Connection]:
        """Begin a connection. Where its `flow` needs a consent, the subject gives it at `connect_url`.

        Without `flow` the provider's definition decides; with `client_credentials`, `jwt_bearer` and the
        like there is no consent, and the connection becomes active by itself. `resources` (RFC 8707) and
        `audience` name what its tokens are for; `choice` the account, where a grant reaches several;
        `slot_scopes` the scopes of further tokens of the same consent, each a connection of its own.
        `challenge` (of `new_verifier`) binds the consent to the session that keeps its verifier: see
        `confirm`. `expect` are claims (`sub`, `email`, `hd`, `tid`) of the account that is meant: a consent
        with another one is refused. `login_hint` helps the provider to choose it; without, an expected
        `email` does.
        """
        slots = {name: list(texts) for name, texts in (slot_scopes or {}).items()}
        account = without_none(expect=dict(expect or {}) or None, login_hint=login_hint)
        body: dict[str, object] = {"integration": integration, "subject": subject, "label": label}
        body |= without_none(scopes=list_or_none(scopes), resources=list(resources) or None)
        body |= without_none(return_to=return_to, flow=flow, audience=audience, choice=choice)
        body |= without_none(slot_scopes=slots or None, challenge=challenge, account=account or None)
        return post("/v1/connections", object_parser(Connection), body)

    @built
    def reauthorize(
        self,
        connection_id: str,
        *,
        scopes: tuple[str, ...] | None = None,
        return_to: str | None = None,
        challenge: str | None = None,
        login_hint: str | None = None,
    ) -> Call[Connection]:
        """Open a new consent for the same connection. The current grant stays until the subject consents."""
        body = without_none(
            scopes=list_or_none(scopes),
            return_to=return_to,
            challenge=challenge,
            account=without_none(login_hint=login_hint) or None,
        )
        return _command(connection_id, "reauthorize", body)

    @built_list
    def audit(self, connection_id: str | None = None) -> Call[Page[AuditRecord]]:
        """A connection's audit records, or the whole tenant's, fetched page by page."""
        path = "/v1/audit" if connection_id is None else path_of("connections", connection_id, "audit")
        return Call("GET", path, page_parser(AuditRecord))

    @built_list
    def providers(self) -> Call[Page[Provider]]:
        """The providers of the catalogue, the tenant's own definitions among them."""
        return Call("GET", "/v1/providers", _parse_providers)

    @built_list
    def access_report_csv(self) -> Call[Page[str]]:
        """`access_report` as pieces of one CSV file, whose first line has the names. No cell is a formula."""
        return Call("GET", "/v1/access", _parse_csv, query={"format": "csv", "limit": "200"})

    @built
    def rotate_client_secret(
        self, name: str, client_secret: str | None = None, *,
        client_key: Mapping[str, str] | None = None, overlap: timedelta | None = None,
    ) -> Call[Integration]:  # fmt: skip
        """Put a new secret or signing key first; the one before is tried too for `overlap` (None: a day)."""
        key, overlap_s = client_key and dict(client_key), seconds_or_none(overlap)
        body = without_none(client_secret=client_secret, client_key=key, overlap_s=overlap_s)
        return post(path_of("integrations", name, "rotate-secret"), object_parser(Integration), body)

    @built
    def roll_client_secret_back(self, name: str) -> Call[Integration]:
        """Make the secret from before the rotation the only one again."""
        path = path_of("integrations", name, "rotate-secret")
        return post(path, object_parser(Integration), {"roll_back": True})

    @built
    def ask_for_call(
        self,
        connection_id: str,
        *,
        reason: str,
        method: str | None = None,
        url: str | None = None,
        headers: Headers | None = None,
        body: str | None = None,
        body_sha256: str | None = None,
        tool: str | None = None,
        arguments: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        decide_within: timedelta | None = None,
    ) -> Call[CallApproval]:
        """Ask a person to approve one call: `method`, `url` and `headers` with a body, or `tool` with
        `arguments` and what is beside them in its `params`, such as `_meta`.

        Name every header that the call will have, such as Content-Type; those that say only how it is sent,
        such as User-Agent, may be left out. The same call again is the same request. Wait with
        `wait_for_approval`, then `use_call_approval`.
        """
        members = without_none(
            **_call(connection_id, method, url, headers, body, body_sha256, tool, arguments, params),
            reason=reason,
            decide_within=seconds_or_none(decide_within),
        )
        return post("/v1/call-approvals", object_parser(CallApproval), members)

    @built
    def use_call_approval(
        self,
        connection_id: str,
        *,
        method: str | None = None,
        url: str | None = None,
        headers: Headers | None = None,
        body: str | None = None,
        body_sha256: str | None = None,
        tool: str | None = None,
        arguments: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Call[CallApproval]:
        """Use up the approval of exactly this call, right before making it.

        Raises Denied `call_approval_required` for a call that differs, isn't approved, or was made already:
        also where the answer to an earlier attempt was lost. Ask for it anew.
        """
        members = _call(connection_id, method, url, headers, body, body_sha256, tool, arguments, params)
        body_members = without_none(**members)
        return Call("POST", "/v1/call-approvals/use", object_parser(CallApproval), body=body_members)

    @built
    def delegate(
        self,
        subject_token: str,
        *,
        token_type: SubjectToken = "id_token",
        scopes: Iterable[str] | None = None,
        integrations: Iterable[str] = (),
        connections: Iterable[str] = (),
        gateway_url: str | None = None,
        lifetime: timedelta | None = None,
        may_act: str | None = None,
    ) -> Call[Delegated]:
        """Act for the person whose token this is, or for less than a delegation's token reaches.

        `token_type` is that of a person's token. `integrations` by name and `connections` by id bound what
        is reached, `scopes` what a leased token may have. `gateway_url`: by calls through this gateway alone.
        `may_act`: the only app that may exchange the token, for one that is handed over. A person's token
        with a `jti` counts once, so this is never sent twice on purpose. Raises BadRequest with the code of
        RFC 6749.
        """
        resources = [path_of("integrations", name) for name in list_or_none(integrations) or ()]
        resources += [path_of("connections", name) for name in list_or_none(connections) or ()]
        if gateway_url is not None:
            resources.append(gateway_url.rstrip("/"))
        is_access_token = subject_token.startswith("evg_dlg_") or token_type == "access_token"
        seconds = seconds_or_none(lifetime)
        form: dict[str, str | list[str]] = {
            "grant_type": _EXCHANGE,
            "subject_token": subject_token,
            "subject_token_type": ACCESS_TOKEN if is_access_token else _ID_TOKEN,
            "resource": resources,
            **without_none(
                scope=None if scopes is None else " ".join(list_or_none(scopes) or ()),
                expires_in=None if seconds is None else str(int(seconds)),
                may_act=may_act,
            ),
        }
        return Call("POST", TOKEN_PATH, _parse_delegated, form=form)

    @built
    def start_export(
        self,
        public_key: Mapping[str, object] | str,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
    ) -> Call[Export]:
        """Have every live grant sealed to a public key: an X25519 or P-256 JWK, or PEM."""
        filters = without_none(integration=integration, provider=provider, subject=subject)
        body = {"public_key": public_key, "filters": filters}
        return post("/v1/connections/export", object_parser(Export), body)

    @built
    def export_audit(self, cursor: str | None = None, *, histories: bool = False) -> Call[LinesPage]:
        """A page of the whole audit log as JSON Lines: from the beginning, or behind a page's `next`.

        With `histories` the exported runs of connections' workflows follow the records.
        """
        query = {"cursor": cursor, "histories": "true" if histories else None}
        return Call("GET", "/v1/audit/export", parse_audit_page, query=without_none(**query))

    @built
    def cose_receipt(self, record: str) -> Call[bytes]:
        """The receipt of a record, `SHARD/INDEX`, in COSE (RFC 9942), which `evergrant.audit.cose` checks.
        `audit_proof` is the same as text, with the signatures of witnesses.
        """
        return Call("GET", "/v1/audit/proof", bytes_of, query={"record": record}, accept="application/cose")

    @built
    def export_lines(self, export_id: str, after: int = 0) -> Call[Export | SealedPage]:
        """The sealed lines behind the first `after`, or the progress while the server still seals."""
        query = {"id": export_id, "after": str(after), "limit": str(_LINES_PER_PAGE)}
        return Call("GET", "/v1/connections/export", _parse_lines, query=query)

    @built
    def incident_report(self, incident_id: str, after: str = "") -> Call[Incident | LinesPage]:
        """A page of the signed report of an incident: from the beginning, or behind a page's `next`. The
        incident while it isn't done. `evergrant.incident_report` checks the whole.
        """
        query = {"limit": str(_LINES_PER_PAGE), "after": after}
        return Call("GET", path_of("incidents", incident_id, "report"), parse_report_page, query=query)

    @built
    def drop_export(self, export_id: str) -> Call[Export]:
        """Delete the server's copy of the lines, once yours is safe. The server does so after a day."""
        return Call("DELETE", "/v1/connections/export", object_parser(Export), query={"id": export_id})


def refresh_call(connection_id: str, seen_generation: int | None) -> Call[Connection]:
    return _command(connection_id, "refresh", without_none(seen_generation=seen_generation))


def report_call(connection_id: str, generation: int) -> Call[Connection]:
    return _command(connection_id, "refresh", {"generation": generation, "reason": "unauthorized"})


def revoke_call(connection_id: str, reason: str) -> Call[Connection]:
    return _command(connection_id, "revoke", {"reason": reason})


def confirm_call(connection_id: str, code: str, subject: str, verifier: str | None) -> Call[Connection]:
    """Needs no Idempotency-Key: to confirm again gives the same answer."""
    body = without_none(code=code, subject=subject, verifier=verifier)
    path = path_of("connections", connection_id, "confirm")
    return Call("POST", path, object_parser(Connection), body=body)


def _command(connection_id: str, name: str, body: Mapping[str, object]) -> Call[Connection]:
    return post(path_of("connections", connection_id, name), object_parser(Connection), body)


def _call(
    connection_id: str,
    method: str | None,
    url: str | None,
    headers: Headers | None,
    body: str | None,
    body_sha256: str | None,
    tool: str | None,
    arguments: Mapping[str, object] | None,
    params: Mapping[str, object] | None,
) -> dict[str, object]:
    """The members of a body that say which call it is."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    return {
        "connection_id": connection_id,
        "method": method,
        "url": url,
        "headers": [{"name": name, "value": value} for name, value in pairs] or None,
        "body": body,
        "body_sha256": body_sha256,
        "tool": tool,
        "arguments": None if arguments is None else dict(arguments),
        "params": None if params is None else dict(params),
    }


def _parse_providers(response: Response) -> Page[Provider]:
    body = parse_body(response, "provider list")
    facts = [Fields.of(item, "provider") for item in body.array("items")]
    items = tuple(Provider(provider.text("name"), provider.members) for provider in facts)
    return Page(items, body.text_or_none("next_cursor"))


def _parse_csv(response: Response) -> Page[str]:
    """The page and, from its Link header (RFC 8288), the cursor of the next one."""
    require_success(response)
    query = parse_qs(urlsplit(response.links.get("next", {}).get("url") or "").query)
    return Page((response.text,), next(iter(query.get("cursor", ())), None))


def _parse_lines(response: Response) -> Export | SealedPage:
    if response.status_code != 200:
        return object_parser(Export)(response)
    total = response.headers.get("x-evergrant-exported", "")
    lines = tuple(response.content.decode("ascii", "replace").splitlines())
    return SealedPage(lines, int(total) if total.isascii() and total.isdigit() else len(lines))


def _parse_delegated(response: Response) -> Delegated:
    if response.status_code != 200:
        raise _refusal(response)
    body = Fields.of_json(response.content, "delegation")
    return body.build(Delegated, token=body.text("access_token"))


def _refusal(response: Response) -> Exception:
    """The error of RFC 6749 section 5.2, or what else the response says."""
    try:
        body = Fields.of_json(response.content, "refusal")
        error, description = body.text("error"), body.text_or_none("error_description")
    except ProtocolError:
        return error_from(response)
    return BadRequest(description or "", code=error, repair=_REPAIR, status=response.status_code)
