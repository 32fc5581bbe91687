"""Points of the path's modules that no refresh and no code exchange passes, and why."""

# No credential is spent here: other flows, which share a module with the two.
ELSEWHERE = {
    "activities.single_use.journal_replay:JournalReplayer._replay_registration": (
        "a registration: there is no connection yet"
    ),
    "activities.single_use.intent:end_intent": "a registration: there is no connection yet",
    "activities.single_use.intent:drop_unsent_intent": "a registration: there is no connection yet",
    "activities.single_use.intent:AttemptTracker.require_no_open_attempt": (
        "ends a consent without a code, or a connection"
    ),
    "activities.consents.first_grant:FirstGrantActivities._record_failed_activity": "a client grant",
    "activities.consents.consent_end:ConsentEndActivities": "ends a consent without a code",
    "activities.consents.consent_end:ExpiryActivities": "announces the end of a grant",
    "activities.consents.consent_end:_is_announced": "announces the end of a grant",
    "activities.support.transactions:record_consent_failure": "a client grant",
    "activities.support.transactions:record_unsent.note#4": "a permit was denied: of a client grant",
    "activities.support.transactions:record_unsent.note#5": "a permit was denied: of a client grant",
    "activities.consents.first_grant:FirstGrantSpend.install#4": "another grant came first",
    "activities.consents.first_grant:FirstGrantSpend.install#5": "another grant came first",
    "activities.consents.first_grant:FirstGrantSpend.install#7": "another account: nothing is installed",
    "activities.consents.first_grant:FirstGrantSpend.install#8": "another account: nothing is installed",
    "activities.consents.first_grant:_require_newest_client": "another client: tests/faults/campaign",
    "activities.consents.first_grant:FirstGrantSpend._keep_late#4": (
        "another grant is installed: nothing is replaced"
    ),
    "activities.consents.first_grant:FirstGrantSpend._keep_late#5": (
        "another grant is installed: nothing is replaced"
    ),
    "activities.grants.recurring_errors:_ask_about_token": "introspection spends nothing",
    "activities.grants.recurring_errors:_rotates": "the table's definitions say whether they rotate",
    "activities.grants.recurring_errors:_may_be_spent_at_rotation#2": (
        "the table's definitions say whether they rotate"
    ),
    "activities.grants.control_request:_read": "tokens of anything: tests/faults/refresh",
    "activities.support.provider_context:ProviderContextLoader.access": "a login: it brings no grant",
    "activities.grants.client_secrets:try_each_secret": "a revocation, or before a consent: spends nothing",
    "evergrant_server.journal.reservation:rename_complete": (
        "a replay after a death between a reply's last byte and its name, which is one of the table's faults"
    ),
    "evergrant_server.egress.transport:GuardedBackend.connect_unix_socket": "always refuses",
    "activities.grants.refresh:RefreshSpend.install#10": (
        "a revocation, and another worker has taken over: the tokens are installed to be revoked"
    ),
    "activities.grants.refresh:RefreshSpend.request#2": "an access token that is exchanged is not spent",
    "evergrant_server.api.connections.commands:_request_new_consent": "another command of an app",
    "evergrant_server.api.connections.commands:save_account_choice": "another command of an app",
    "evergrant_server.api.connections.commands:_revoke": "another command of an app",
    "evergrant_server.api.connections.commands:request_revocation": "another command of an app",
    "evergrant_server.api.connections.commands:choose_account": "another command of an app",
    "evergrant_server.api.connections.commands:reauthorize_connection": "another command of an app",
    "evergrant_server.api.connections.commands:revoke_connection": "another command of an app",
    "evergrant_server.api.connections.commands:delete_connection": "another command of an app",
    "evergrant_server.api.connections.commands:confirm_consent": "the harness confirms without HTTP",
    "evergrant_server.api.connections.commands:_raise_refusal": "nothing is written here",
    "evergrant_server.api.connections.commands:_link": "nothing is written here",
    "activities.single_use.protocol:SingleUseProtocol._require_known_elsewhere": (
        "another region: tests/faults/region"
    ),
    "activities.single_use.protocol:SingleUseProtocol.open#6": "another region: tests/faults/region",
    "activities.single_use.protocol:SingleUseProtocol.conclude#3": "another region: tests/faults/region",
    "activities.support.transactions:record_once_a_day": "what a reconcile pass and the audit log have found",
}

ELSEWHERE_CALLED = {
    "tx.grants.access_token": "an access token that is exchanged is not spent",
    "install_import": "an import brings its tokens: no provider is asked",
    "revoke_orphaned_tokens": "what came when its connection had ended: it is revoked",
    "client_grant_token_request": "a minting spends nothing, and an ID-JAG is made for one",
    "self._replay_registration": "a registration: there is no connection yet",
    "drop_unsent_intent": "a registration: there is no connection yet",
}
