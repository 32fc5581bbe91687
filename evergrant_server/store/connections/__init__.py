"""Rows of connections: grants with their sealed tokens, consents, attempts, late tokens, proof keys,
account identifiers, usage, exported histories, and the one query of the lease path.

Doesn't own transitions (core) or the protocol for single-use credentials (activities).
"""
