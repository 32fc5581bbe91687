"""Requests to providers, and what the subject's browser carries back.

Owns the authorization URL, callbacks, PAR, device and token requests in a provider's format, DPoP
proofs, and sending them. Doesn't interpret replies (`providers.responses`) and doesn't decide when to
send (activities).
"""
