"""OAuth 1.0a (RFC 5849), for the few providers that still use it.

Owns its requests, signatures, replies and callbacks. Only one module of each layer enters it (see the
import contract in pyproject.toml); no other package depends on it.
"""
