"""Which flow a new connection uses, and the credentials and the account that it needs.

Static credentials and subject tokens in a request replace a consent.
"""

import base64
import re

from evergrant_server.access.context import ApiContext
from evergrant_server.api.connections.models import AccountBody, ConnectionBody, CredentialBody
from evergrant_server.core.connections.account import SUB, ConsentAccount
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import asks_for_id_token
from providers.requests.dpop import with_dpop_binding

ALLOW_SETTING = "EVERGRANT_ALLOW_TOKENS_IN_BROWSER"
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,65536}")  # fits into a header
_NEEDS_CREDENTIALS = (Flow.TOKEN_EXCHANGE, Flow.API_KEY, Flow.BASIC, Flow.ID_JAG)
_NAMES_ACCOUNTS = (Flow.AUTHORIZATION_CODE, Flow.DEVICE_CODE, Flow.OAUTH1)


def usable_flow(spec: ProviderSpec, integration: Integration, requested: Flow | None) -> Flow:
    """The requested or default flow; ID-JAG, and no other one, where an identity provider grants access.

    Raises Failure INVALID_REQUEST for one that the provider lacks.
    """
    granted = integration.identity_provider is not None
    if requested is not None and (requested is Flow.ID_JAG) is not granted:
        why = "The flow id_jag goes with an integration that has an identity_provider; no other flow does."
        raise invalid_request("flow", why)
    flow = Flow.ID_JAG if granted else requested or _default_flow(spec)
    with_dpop_binding(spec, integration, None).require_usable(flow)
    return flow


def _default_flow(spec: ProviderSpec) -> Flow:
    """The definition's first flow that needs no credential in the request; implicit only as the last."""
    known = [Flow(mode) for mode in spec.auth_modes if mode in set(Flow)]
    known.sort(key=lambda flow: flow is Flow.IMPLICIT)  # RFC 9700 section 2.1.2
    return next((flow for flow in known if flow not in _NEEDS_CREDENTIALS), Flow.AUTHORIZATION_CODE)


def require_flow_allowed(flow: Flow, api: ApiContext, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
    """Raise Failure `code`, naming the setting, for the implicit flow unless the operator allows it."""
    if flow is Flow.IMPLICIT and not api.settings.allow_tokens_in_browser:
        detail = f"The flow implicit is off: {ALLOW_SETTING} allows tokens in the browser."
        raise Failure(code, detail, field="flow", setting=ALLOW_SETTING)


async def require_identity(tx: Transaction, integration: Integration, wanted: ConnectionBody) -> None:
    """Raise Failure IDENTITY_NEEDED unless the subject is connected at the identity provider, and
    INVALID_REQUEST for an audience, which is the issuer of the integration."""
    name = integration.identity_provider
    assert name is not None  # by `usable_flow`
    if wanted.audience is not None:
        raise invalid_request("audience", "The flow id_jag addresses the integration's own issuer.")
    source = await tx.connections.by_names(integration.tenant, name, wanted.subject, wanted.label)
    if source is None or source.state is not LifecycleState.ACTIVE:
        why = f"The subject has no connection at {name}, whose identity provider grants access here."
        raise Failure(ErrorCode.IDENTITY_NEEDED, why, identity_provider=name)


def supplied_tokens(spec: ProviderSpec, flow: Flow, body: ConnectionBody) -> ImportedTokens | None:
    """The static credential or subject token of the request, as a grant without expiry.

    Raises Failure INVALID_REQUEST if the flow lacks a credential or can't use a given one.
    """
    _check_credentials(flow, body)
    if body.credential is not None:
        scheme = "Basic" if flow is Flow.BASIC else (spec.api_request.auth_scheme if spec.api_request else "")
        token = _credential_token(flow, body.credential)
        return ImportedTokens(access_token=token, token_type=scheme or "ApiKey", expires_at=None)
    if body.subject_token is not None:
        return ImportedTokens(access_token=body.subject_token, expires_at=None)
    return None


def _check_credentials(flow: Flow, body: ConnectionBody) -> None:
    if (body.credential is not None) is not flow.is_static:
        raise invalid_request("credential", "The flows api_key and basic need it; no other flow takes it.")
    tokens = (body.source is not None) + (body.subject_token is not None)
    if tokens != (1 if flow is Flow.TOKEN_EXCHANGE else 0):
        raise invalid_request(
            "source", "token_exchange needs a source or a subject_token; no other flow takes them."
        )
    if body.subject_token is not None and not _HEADER_VALUE.fullmatch(body.subject_token.reveal()):
        raise invalid_request("subject_token", "It has characters that a token can't have.")
    if body.subject_token_type is not None and body.subject_token is None:
        raise invalid_request("subject_token_type", "It needs a subject_token.")


def _credential_token(flow: Flow, credential: CredentialBody) -> Secret:
    """The API key, or the encoded user-pass (RFC 7617 section 2). Raises Failure INVALID_REQUEST."""
    names = (credential.username is not None, credential.password is not None)
    if flow is Flow.BASIC:
        if names != (True, True) or credential.api_key is not None or ":" in (credential.username or ""):
            raise invalid_request("credential", "basic needs a user name without a colon, and a password.")
        assert credential.password is not None
        pair = f"{credential.username}:{credential.password.reveal()}"
        return Secret(base64.b64encode(pair.encode()).decode("ascii"))
    if credential.api_key is None or any(names) or not _HEADER_VALUE.fullmatch(credential.api_key.reveal()):
        raise invalid_request("credential", "api_key needs a key of printable characters, without spaces.")
    return credential.api_key


def expected_account(
    tx: Transaction,
    integration: Integration,
    spec: ProviderSpec,
    flow: Flow,
    scopes: tuple[str, ...],
    account: AccountBody | None,
) -> dict[str, str] | None:
    """What a new connection expects, as keyed hashes by claim.

    Raises Failure INVALID_REQUEST where no reply would show whether it holds: every consent would fail.
    """
    expected = {} if account is None else account.expected
    if not expected:
        return None
    if flow not in _NAMES_ACCOUNTS:
        raise invalid_request("account", f"In the flow {flow} no reply names the account.")
    own_id = spec.account_id is not None and expected.keys() == {SUB}
    if not own_id and not asks_for_id_token(spec, integration, scopes):
        raise invalid_request("account", "Request the scope openid: the id token names the account.")
    return tx.account_identifiers.hash_claims(integration.tenant, integration.id, expected)


def require_same_expectation(tx: Transaction, connection: Connection, account: AccountBody | None) -> None:
    """Raise Failure ALREADY_EXISTS if the request expects another account than the connection."""
    expected = {} if account is None else account.expected
    if not expected:
        return
    hashes = tx.account_identifiers.hash_claims(connection.tenant, connection.integration_id, expected)
    if hashes != connection.expected_account:
        detail = "A live connection of these names expects another account; use another label."
        raise Failure(ErrorCode.ALREADY_EXISTS, detail, field="account")


def account_of_consent(account: AccountBody | None) -> ConsentAccount | None:
    """What is kept with a new consent: the hint to send to the provider."""
    hint = None if account is None else account.hint
    return None if hint is None else ConsentAccount(login_hint=hint)
