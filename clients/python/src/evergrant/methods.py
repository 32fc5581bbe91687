"""The methods that both clients have: each sends one call, or iterates over a list."""

from evergrant.calls import access as access_calls
from evergrant.calls import api_keys as api_key_calls
from evergrant.calls import approvals as approval_calls
from evergrant.calls import connections as connection_calls
from evergrant.calls import integrations as integration_calls
from evergrant.calls import leases as lease_calls
from evergrant.calls import transfer as transfer_calls
from evergrant.calls import webhooks as webhook_calls
from evergrant.transport import Lists, Sends


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
    apps = Lists(connection_calls.apps)

    api_keys = Lists(api_key_calls.api_keys)
    create_api_key = Sends(api_key_calls.create_api_key)
    revoke_api_key = Sends(api_key_calls.revoke_api_key)

    explain_access = Sends(access_calls.explain_access)
    access_report = Lists(access_calls.access_report)
    access_report_csv = Lists(access_calls.access_report_csv)

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
