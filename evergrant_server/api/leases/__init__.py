"""The routes of leases: tokens, DPoP proofs and OAuth 1.0a signatures, and the refreshes that are requested.

Doesn't own whether a lease is issued (access), the refresh itself (a worker's), or the audit transaction of a
lease (audit).
"""
