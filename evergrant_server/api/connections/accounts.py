"""The account at the provider that an app expects its subject to consent with."""

from evergrant_server.api.http.models import Body, Text
from evergrant_server.core.connections.account import EMAIL, SUB, ConsentAccount
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import asks_for_id_token

_NAMES_ACCOUNTS = (Flow.AUTHORIZATION_CODE, Flow.DEVICE_CODE, Flow.OAUTH1)


class ExpectedAccountBody(Body):
    """What the account's id token must say. `sub` may also be the provider's own id of the account; `email`
    counts where the provider says that it is verified."""

    sub: Text | None = None
    email: Text | None = None
    hd: Text | None = None
    tid: Text | None = None


class AccountBody(Body):
    """The account at the provider that is meant; `login_hint` is sent there to choose it."""

    expect: ExpectedAccountBody | None = None
    login_hint: Text | None = None

    @property
    def expected(self) -> dict[str, str]:
        return {} if self.expect is None else self.expect.model_dump(exclude_none=True)

    @property
    def hint(self) -> str | None:
        return self.login_hint or self.expected.get(EMAIL)


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


def require_same_expectation(tx: Transaction, there: Connection, account: AccountBody | None) -> None:
    """Raise Failure ALREADY_EXISTS if the request expects another account than the connection."""
    expected = {} if account is None else account.expected
    if not expected:
        return
    hashes = tx.account_identifiers.hash_claims(there.tenant, there.integration_id, expected)
    if hashes != there.expected_account:
        detail = "A live connection of these names expects another account; use another label."
        raise Failure(ErrorCode.ALREADY_EXISTS, detail, field="account")


def account_of_consent(account: AccountBody | None) -> ConsentAccount | None:
    """What is kept with a new consent: the hint to send to the provider."""
    hint = None if account is None else account.hint
    return None if hint is None else ConsentAccount(login_hint=hint)
