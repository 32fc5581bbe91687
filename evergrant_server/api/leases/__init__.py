"""The lease path: tokens, DPoP proofs and OAuth 1.0a signatures, and the refreshes that callers wait for.

Doesn't own the refresh itself (a worker's) or the audit transaction of a lease (audit).
"""
