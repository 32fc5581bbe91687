"""People who administer: where they log in, and their sessions.

Doesn't own how a request is authenticated (http), the pages of a login (pages), nor rights (core).
"""
