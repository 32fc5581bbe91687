"""Tokens of the gateways' clients: codes are exchanged for a family of tokens, which is refreshed and ended.

Owns the replay ledger and what ends a family. Doesn't own how codes come about (the authorization endpoint),
nor how access tokens are recognized afterwards (http).
"""
