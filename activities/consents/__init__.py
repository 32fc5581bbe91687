"""Consents: the first grant of a connection, from a code, a client grant, a device code or an import.

Owns the activities that end a consent, with a grant or without, and those that follow its grant:
account lookups, expiry notices and exports. Doesn't own consent pages and callbacks (`api`), the
protocol that spends a code (`activities.single_use`), or when to act (`workflows`).
"""
