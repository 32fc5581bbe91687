"""The methods that both clients have: each sends one call, or iterates over a list.

`Sends` and `Lists` make a method of both clients from a function that builds a call.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from evergrant.calls import access as access_calls
from evergrant.calls import access_requests as access_request_calls
from evergrant.calls import api_keys as api_key_calls
from evergrant.calls import approvals as approval_calls
from evergrant.calls import apps as app_calls
from evergrant.calls import connections as connection_calls
from evergrant.calls import credentials as credential_calls
from evergrant.calls import integrations as integration_calls
from evergrant.calls import issuers as issuer_calls
from evergrant.calls import leases as lease_calls
from evergrant.calls import people as people_calls
from evergrant.calls import permits as permit_calls
from evergrant.calls import transfer as transfer_calls
from evergrant.calls import webhooks as webhook_calls
from evergrant.calls.agents import agents as agent_calls
from evergrant.calls.agents import call_approvals as call_approval_calls
from evergrant.calls.agents import delegations as delegation_calls
from evergrant.calls.agents import oauth_clients as client_calls
from evergrant.calls.agents import token_families as family_calls
from evergrant.calls.call import Call, Page, Result
from evergrant.transport import AsyncTransport, Transport

Params = ParamSpec("Params")
Item = TypeVar("Item")


class Sends(Generic[Params, Result]):
    """A method of both clients that sends the call of `build`, with its parameters and docstring."""

    def __init__(self, build: Callable[Params, Call[Result]]) -> None:
        def send(client: Transport, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
            return client.send(build(*args, **kwargs))

        async def send_async(
            client: AsyncTransport, /, *args: Params.args, **kwargs: Params.kwargs
        ) -> Result:
            return await client.send(build(*args, **kwargs))

        self._methods = (_described(send, build), _described(send_async, build))

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Result]: ...
    @overload
    def __get__(
        self, client: AsyncTransport, owner: type
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: object, owner: type) -> Callable[..., Any]:
        method = self._methods[issubclass(owner, AsyncTransport)]
        return method if client is None else MethodType(method, client)


class Lists(Generic[Params, Item]):
    """A method of both clients that iterates over the list of `build`."""

    def __init__(self, build: Callable[Params, Call[Page[Item]]]) -> None:
        def pages(client: Any, /, *args: Params.args, **kwargs: Params.kwargs) -> Any:
            return client.pages(build(*args, **kwargs))

        self._method = _described(pages, build)

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Iterator[Item]]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[Params, AsyncIterator[Item]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: object, owner: type) -> Callable[..., Any]:
        return self._method if client is None else MethodType(self._method, client)


def _described(method: Callable[..., Any], build: Callable[..., object]) -> Callable[..., Any]:
    """The method with the name, docstring and parameters of its call, for `help` and for mocks."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *inspect.signature(build).parameters.values()]
    vars(method).update(__signature__=inspect.Signature(parameters))
    method.__name__ = build.__name__
    method.__doc__ = build.__doc__
    return method


class ApiMethods:
    """Methods of `Evergrant` that block, and of `AsyncEvergrant` that are awaited."""

    proof = Sends(lease_calls.proof)
    sign = Sends(lease_calls.sign)

    connect = Sends(connection_calls.connect)
    connection = Sends(connection_calls.connection)
    connections = Lists(connection_calls.connections)
    reauthorize = Sends(connection_calls.reauthorize)
    choose = Sends(connection_calls.choose)
    audit = Lists(connection_calls.audit)
    providers = Lists(connection_calls.providers)

    apps = Lists(app_calls.apps)
    app = Sends(app_calls.app)
    put_app = Sends(app_calls.put_app)
    delete_app = Sends(app_calls.delete_app)

    agents = Lists(agent_calls.agents)
    agent = Sends(agent_calls.agent)
    put_agent = Sends(agent_calls.put_agent)
    stop_agent = Sends(agent_calls.stop_agent)
    agent_stop = Sends(agent_calls.agent_stop)
    delegate = Sends(delegation_calls.delegate)
    delegations = Lists(delegation_calls.delegations)
    delegation = Sends(delegation_calls.delegation)
    explain_delegation = Sends(delegation_calls.explain_delegation)
    stop_delegation = Sends(delegation_calls.stop_delegation)
    delegation_rules = Lists(delegation_calls.delegation_rules)
    put_delegation_rule = Sends(delegation_calls.put_delegation_rule)
    delete_delegation_rule = Sends(delegation_calls.delete_delegation_rule)
    ask_for_call = Sends(call_approval_calls.ask_for_call)
    use_call_approval = Sends(call_approval_calls.use_call_approval)
    call_approvals = Lists(call_approval_calls.call_approvals)
    call_approval = Sends(call_approval_calls.call_approval)
    approve_call = Sends(call_approval_calls.approve_call)
    deny_call = Sends(call_approval_calls.deny_call)

    api_keys = Lists(api_key_calls.api_keys)
    create_api_key = Sends(api_key_calls.create_api_key)
    revoke_api_key = Sends(api_key_calls.revoke_api_key)

    credentials = Lists(credential_calls.credentials)
    put_credential = Sends(credential_calls.put_credential)
    delete_credential = Sends(credential_calls.delete_credential)
    trusted_issuers = Lists(issuer_calls.trusted_issuers)
    trusted_issuer = Sends(issuer_calls.trusted_issuer)
    put_trusted_issuer = Sends(issuer_calls.put_trusted_issuer)
    delete_trusted_issuer = Sends(issuer_calls.delete_trusted_issuer)

    permits = Lists(permit_calls.permits)
    permit = Sends(permit_calls.permit)
    put_permit = Sends(permit_calls.put_permit)
    delete_permit = Sends(permit_calls.delete_permit)
    explain_access = Sends(access_calls.explain_access)
    access_report = Lists(access_calls.access_report)
    app_reach = Lists(access_calls.app_reach)
    simulate_access = Sends(access_calls.simulate_access)
    access_changes = Lists(access_calls.access_changes)
    access_report_csv = Lists(access_calls.access_report_csv)

    request_access = Sends(access_request_calls.request_access)
    access_requests = Lists(access_request_calls.access_requests)
    access_request = Sends(access_request_calls.access_request)
    approve_access = Sends(access_request_calls.approve_access)
    deny_access = Sends(access_request_calls.deny_access)
    withdraw_access_request = Sends(access_request_calls.withdraw_access_request)

    admin_login = Sends(people_calls.admin_login)
    put_admin_login = Sends(people_calls.put_admin_login)
    delete_admin_login = Sends(people_calls.delete_admin_login)
    sessions = Lists(people_calls.sessions)
    end_session = Sends(people_calls.end_session)
    own_session = Sends(people_calls.own_session)
    end_own_session = Sends(people_calls.end_own_session)

    client_login = Sends(client_calls.client_login)
    put_client_login = Sends(client_calls.put_client_login)
    delete_client_login = Sends(client_calls.delete_client_login)
    oauth_clients = Lists(client_calls.oauth_clients)
    create_oauth_client = Sends(client_calls.create_oauth_client)
    switch_oauth_client = Sends(client_calls.switch_oauth_client)
    delete_oauth_client = Sends(client_calls.delete_oauth_client)
    token_families = Lists(family_calls.token_families)
    end_token_family = Sends(family_calls.end_token_family)
    end_token_families = Sends(family_calls.end_token_families)

    approvals = Lists(approval_calls.approvals)
    approve = Sends(approval_calls.approve)

    integrations = Lists(integration_calls.integrations)
    integration = Sends(integration_calls.integration)
    put_integration = Sends(integration_calls.put_integration)
    delete_integration = Sends(integration_calls.delete_integration)
    rotate_client_secret = Sends(integration_calls.rotate_client_secret)
    roll_client_secret_back = Sends(integration_calls.roll_client_secret_back)
    propose_provider = Sends(integration_calls.propose_provider)
    provider_versions = Lists(integration_calls.provider_versions)
    approve_provider = Sends(integration_calls.approve_provider)
    reject_provider = Sends(integration_calls.reject_provider)
    roll_provider_back = Sends(integration_calls.roll_provider_back)

    webhooks = Lists(webhook_calls.webhooks)
    webhook = Sends(webhook_calls.webhook)
    put_webhook = Sends(webhook_calls.put_webhook)
    delete_webhook = Sends(webhook_calls.delete_webhook)
    rotate_webhook_secret = Sends(webhook_calls.rotate_webhook_secret)
    webhook_deliveries = Lists(webhook_calls.webhook_deliveries)
    replay_webhook = Sends(webhook_calls.replay_webhook)
    test_webhook = Sends(webhook_calls.test_webhook)

    start_export = Sends(transfer_calls.start_export)
    export_lines = Sends(transfer_calls.export_lines)
    drop_export = Sends(transfer_calls.drop_export)
