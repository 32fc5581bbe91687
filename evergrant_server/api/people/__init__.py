"""People who administer: where they log in, the login's pages, and their sessions.

Doesn't own how a request is authenticated (http), nor which rights a role has (core).
"""
