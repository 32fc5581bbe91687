"""Grants that are found dead, and their access tokens: asked about once, and ended where they are refused.

A provider may refuse such a token from the same moment on, or take it until its date. Nothing is spent by the
question.
"""

import asyncio
from contextlib import suppress
from datetime import datetime

from activities.grants import GrantServices
from activities.grants.token_request import introspect_token, supports_introspection
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, FailureKind
from evergrant_server.core.integrations import AfterGrantOver
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from providers.definition.templates import checked_params, fill_template, params_from_metadata
from providers.requests.request_format import userinfo_request
from providers.responses.challenges import bearer_challenge
from providers.responses.raw_reply import RawReply

_QUESTION_TIMEOUT_S = 5.0  # the activity has half a minute after the reply, and may have introspected already


async def condemn(
    tx: Transaction, call: ConnectionCall, current: Connection, reason: ErrorCode, now: datetime
) -> None:
    """Write that the grant has ended: its subject has to consent again."""
    await tx.connections.replace(current.rejected(reason, now), expected=current.revision)
    await append_audit(tx, call, AuditAction.NEEDS_REAUTH, now, reason=reason)


async def end_refused_token(services: GrantServices, call: ConnectionCall, result: GrantResult) -> None:
    """End the access token of the grant that `result` says is dead, if its provider refuses it, or its
    integration wants it refused: from then on it isn't leased. What can't be asked proves nothing."""
    if result.failure is None or FAILURES[result.failure].kind is not FailureKind.RECONNECT_NEEDED:
        return
    with suppress(Failure, TimeoutError):
        async with asyncio.timeout(_QUESTION_TIMEOUT_S):
            context = await services.contexts.load(call.tenant, call.connection_id)
            source = await _why_refused(services, context)
        if source is not None:
            await _record(services, call, context, source)


async def _why_refused(services: GrantServices, context: ProviderContext) -> str | None:
    """What shows that the access token is refused: "policy", "introspection" or "userinfo"; None: nothing."""
    connection, grant, now = context.connection, context.grant, services.clock.now()
    dead = connection.state is LifecycleState.NEEDS_REAUTH and grant is not None and grant.is_valid(now)
    known = connection.reported_generation == connection.generation
    if not dead or known or connection.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE:
        return None
    if context.integration.after_grant_over is AfterGrantOver.REFUSE:
        return "policy"
    if connection.flow.is_static or not connection.flow.is_bearer or context.provisional:
        return None
    token = context.tokens.access_token()
    if supports_introspection(context):
        active = await introspect_token(services.sender, context, token, "access_token")
        return None if active else "introspection"
    return await _userinfo_refuses(services, context, token)


async def _userinfo_refuses(services: GrantServices, context: ProviderContext, token: Secret) -> str | None:
    """A 401 counts if the token was granted `openid`, or if the endpoint calls it invalid (RFC 6750 section
    3.1): some answer so when a scope is missing."""
    url = _userinfo_endpoint(context)
    if url is None or context.uses_dpop:
        return None
    reply = await services.sender.send(context, userinfo_request(url, token))
    assert context.grant is not None
    invalid = "openid" in context.grant.scopes or _calls_token_invalid(reply)
    return "userinfo" if reply.status == 401 and invalid else None


def _userinfo_endpoint(context: ProviderContext) -> str | None:
    spec, discovered = context.spec, context.endpoints.userinfo_endpoint
    if discovered is not None or spec.userinfo_endpoint is None:
        return discovered
    params = checked_params(spec, {**context.params, **params_from_metadata(spec, context.facts)})
    return fill_template(spec.userinfo_endpoint, params, spec)


def _calls_token_invalid(reply: RawReply) -> bool:
    challenge = bearer_challenge([reply.headers.get("www-authenticate", "")])
    return challenge is not None and challenge.params.get("error") == "invalid_token"


async def _record(
    services: GrantServices, call: ConnectionCall, context: ProviderContext, source: str
) -> None:
    """Write it as a report of an app is written: no process leases the token once this is committed."""
    generation = context.connection.generation

    async def record(tx: Transaction) -> None:
        current = await load_connection(tx, call)
        if current.state is not LifecycleState.NEEDS_REAUTH or current.generation != generation:
            return
        await tx.connections.replace(current.token_reported(), expected=current.revision)
        now, detail = services.clock.now(), {"generation": generation, "source": source}
        await append_audit(tx, call, AuditAction.TOKEN_REPORTED, now, **detail)

    await commit_with_retries(services.store, record)
