"""The token endpoint, `POST /oauth/token` (RFC 6749 section 4.4), and its metadata (RFC 8414).

Owns how an app proves its identity, with one function for each method. Doesn't own how tokens are recognized
afterwards (http), nor which credentials are registered (apps).
"""
