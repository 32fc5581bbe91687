"""Whether a request is allowed: who calls, what permits and limits say, and what is recorded of it.

The API's routes, the gateway, Envoy's check and the explanations judge here, by the same functions.

Owns credentials and how they are recognized, the caller, the judged request, the lease decision with its
refusals and refreshes, limits, approvals of dangerous commands, and the transactions that record. Doesn't own
how permits are compared (policy), rows (store), the ledger and the trees (audit), HTTP (api.http), or what a
route does once it is allowed.
"""
