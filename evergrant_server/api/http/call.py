"""The request of an app as the API's routes see it: a judged request with an `Idempotency-Key`.

Every caller is read from the store. Only the lease path uses a cache, and the lease ledger
re-checks the revisions.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.responses import Response

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.judged_request import DryRun, JudgedRequest
from evergrant_server.access.people import person_caller
from evergrant_server.access.transactions import ATTEMPTS
from evergrant_server.api.http.cursors import Listing
from evergrant_server.api.http.models import Slug
from evergrant_server.api.http.request_errors import require_known_query
from evergrant_server.core.access import READING_ACTIONS, Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.webhooks import masked_url
from evergrant_server.policy import Target
from evergrant_server.store import Transaction

T = TypeVar("T")

bearer_scheme = HTTPBearer(
    auto_error=False,
    description="An API key `evg_key_…`, an access token `evg_tok_…`, or a person's session `evg_ses_…`.",
)


class CommandResponse(Response):
    """The JSON response to a command. It may hold a connect link or an API key."""

    media_type = "application/json"

    @classmethod
    def of(cls, view: BaseModel, status: int = 200) -> "CommandResponse":
        return cls(view.model_dump_json(), status)


@dataclass(frozen=True)
class ApiCall(JudgedRequest):
    """A request of an authenticated app. `key` is its Idempotency-Key."""

    key: str | None = None

    def changing(self, *secrets: object) -> tuple[Action, ...]:
        """The actions of which one is needed to change configuration. Who reads it may make a dry run, but
        not with secrets: whether one is the stored one is for admins."""
        only_reads = self.dry_run is not None and all(secret is None for secret in secrets)
        return READING_ACTIONS if only_reads else (Action.ADMIN,)

    def require_change_of_url(self, url: str) -> None:
        """Check that the caller may change where the tenant's events or records go; the query of the URL is a
        secret. Raises Failure NOT_PERMITTED."""
        query = None if masked_url(url)[0] == url else url
        self.require_permit(*self.changing(query), of=Target())

    def listing(self, list: str, limit: int, cursor: str | None, **filters: object) -> Listing:
        """The page of a list that the request asks for. Raises Failure INVALID_REQUEST for its cursor."""
        return Listing(self.api.ring, self.tenant, {"list": list, **filters}, limit, cursor)

    async def run(
        self,
        sent: BaseModel | None,
        work: Callable[[Transaction], Awaitable[CommandResponse]],
        *,
        tries: int = ATTEMPTS,
    ) -> CommandResponse:
        """As `write`; for a repeated key return the stored response.

        `sent` is the body without secrets. Raises Failure IDEMPOTENCY_CONFLICT, STORE_CONFLICT after
        `tries`, and those of `work`.
        """

        async def write(tx: Transaction) -> CommandResponse:
            stored = await self.stored_response(tx, sent)
            if stored is not None:
                return stored
            response = await work(tx)
            if self.key is not None:
                status, body = response.status_code, bytes(response.body).decode()
                app_id, hashed = self.caller.app.id, self.request_hash(sent)
                await tx.idempotency.store(self.tenant, app_id, self.key, hashed, status, body, self.now)
            return response

        return await self.write(write, tries=tries)

    async def stored_response(self, tx: Transaction, sent: BaseModel | None) -> CommandResponse | None:
        """The stored response, if any. Raises Failure IDEMPOTENCY_CONFLICT for another request's key."""
        if self.key is None:
            return None
        stored = await tx.idempotency.find(self.tenant, self.caller.app.id, self.key)
        if stored is None:
            return None
        if stored.request_hash != self.request_hash(sent):
            raise Failure(ErrorCode.IDEMPOTENCY_CONFLICT)
        return CommandResponse(stored.body, stored.status)


def api_context(request: Request) -> ApiContext:
    return request.app.state.api


async def _any_app(request: Request, _: Annotated[object, Depends(bearer_scheme)]) -> ApiCall:
    """The call of any app or person. Raises Failure INVALID_REQUEST, UNAUTHENTICATED, TENANT_DISABLED,
    APP_DISABLED, CROSS_SITE_REQUEST, RATE_LIMITED."""
    api = api_context(request)
    caller = await authenticated(api, request)
    await api.limits.count_request(request.scope, caller.app)
    require_known_query(request)
    call = ApiCall.of(api, request, caller)
    request.app.state.networks.note(call)
    return call


async def authenticated(api: ApiContext, request: Request, further_origins: Collection[str] = ()) -> Caller:
    """The app or person who sends the request. Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED,
    CROSS_SITE_REQUEST, and NOT_PERMITTED for a delegation."""
    caller = await person_caller(api, request, further_origins)
    if caller is None:
        caller = await api.authenticator.authenticate(request)
        if caller.delegated is not None:
            why = "A delegation is for leases and for calls through the gateway: use the app's own key here."
            raise Failure(ErrorCode.NOT_PERMITTED, why)
        api.ledger.note_use(caller.tenant, caller.credential.id)
    return caller


Call = Annotated[ApiCall, Depends(_any_app)]


async def require_tenant_admin(call: Call) -> ApiCall:
    """The call of an app with `admin` for the whole tenant. Raises Failure NOT_PERMITTED."""
    call.require_permit(Action.ADMIN, of=Target())
    return call


async def require_auditor(call: Call) -> ApiCall:
    """The call of an app with `admin` or `audit` for the whole tenant. Raises Failure NOT_PERMITTED."""
    call.require_permit(*READING_ACTIONS, of=Target())
    return call


async def _exporter(call: Call) -> ApiCall:
    """The call of an app with `export` for the whole tenant. Raises Failure NOT_PERMITTED."""
    call.require_permit(Action.EXPORT, of=Target())
    return call


AdminCall = Annotated[ApiCall, Depends(require_tenant_admin)]
AuditorCall = Annotated[ApiCall, Depends(require_auditor)]  # for routes that change nothing
ExportCall = Annotated[ApiCall, Depends(_exporter)]
_Key = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
]


async def _command(call: Call, key: _Key = None) -> ApiCall:
    return replace(call, key=key)


async def _admin_command(call: AdminCall, key: _Key = None) -> ApiCall:
    return replace(call, key=key)


async def _auditor_command(call: AuditorCall, key: _Key = None) -> ApiCall:
    return replace(call, key=key)


async def _export_command(call: ExportCall, key: _Key = None) -> ApiCall:
    return replace(call, key=key)


_DryRun = Annotated[bool, Query(description="Judge the change and answer as if it were made, and make none.")]
_ManagedBy = Annotated[
    Slug | None, Query(description="The set of configuration files that it comes from, for the audit record.")
]


async def _change(
    call: Call, response: Response, dry_run: _DryRun = False, managed_by: _ManagedBy = None
) -> ApiCall:
    """The call of a PUT of configuration, whose route checks whether the caller may change it."""
    return replace(call, dry_run=DryRun(response) if dry_run else None, managed_by=managed_by)


Change = Annotated[ApiCall, Depends(_change)]


async def _admin_change(call: Change) -> ApiCall:
    """The call of an app with `admin` for the whole tenant; of a dry run also with `audit`."""
    call.require_permit(*call.changing(), of=Target())
    return call


AdminChange = Annotated[ApiCall, Depends(_admin_change)]
ApiDep = Annotated[ApiContext, Depends(api_context)]
Command = Annotated[ApiCall, Depends(_command)]
AdminCommand = Annotated[ApiCall, Depends(_admin_command)]
AuditorCommand = Annotated[ApiCall, Depends(_auditor_command)]  # for what is made to be read
ExportCommand = Annotated[ApiCall, Depends(_export_command)]
