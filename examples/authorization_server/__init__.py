"""A real authorization server in one process: django-oauth-toolkit on SQLite, for the demo and tests.

Owns the Django project around it: settings, a login page, one protected resource, and a control
API on loopback (register a client, read the server's counts, withhold an answer). Doesn't own
OAuth: every grant, rotation, revocation and metadata document is django-oauth-toolkit's. Not for
production: it serves plain HTTP on loopback only.
"""
