"""Grants: refresh, revocation, and what happens to tokens that arrive late or without a connection.

Owns token requests, the fallbacks between client secrets and definitions, and the commit of a
reply's tokens. Doesn't own first grants (`activities.consents`), the protocol that spends a
credential (`activities.single_use`), the format of requests and replies (`providers`), or when to
act (`workflows`).
"""
