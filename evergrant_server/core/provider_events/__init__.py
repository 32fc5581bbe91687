"""What a provider reports about a grant: receivers, account identifiers, introspection, revocation.

Owns what a report means for a connection. Verifying signatures is `providers.events`'.
"""
