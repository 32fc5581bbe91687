"""Requests to providers, and what the subject's browser carries back.

Owns the authorization URL, callbacks, PAR, device, token and account requests in a provider's format,
DPoP proofs, and sending them. Doesn't interpret token replies (`providers.responses`) and doesn't
decide when to send (activities).
"""
