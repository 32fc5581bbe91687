"""`/v1/connections`: creation, reauthorization, revocation, account choice, device codes and history.

Doesn't own leases and refreshes (leases), import and export (transfer), or the subject's pages (pages).
"""
