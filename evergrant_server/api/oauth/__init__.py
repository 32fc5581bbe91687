"""Evergrant as an authorization server (RFC 6749): metadata, registration, token and revocation endpoint.

Owns how an app proves its identity, with one function for each method, and each grant: an app's own token, a
delegation for a person, and a client's family of tokens with its replay ledger. Doesn't own the authorization
endpoint (`api.pages.authorization`), how tokens are recognized afterwards (`access`), nor which credentials
are registered (`api.apps`).
"""
