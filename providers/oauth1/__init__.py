"""OAuth 1.0a (RFC 5849), for the few providers that still use it.

Owns its requests, signatures, replies and callbacks. Few modules enter it (see the import contract in
pyproject.toml); no other package of `providers` depends on it.
"""
