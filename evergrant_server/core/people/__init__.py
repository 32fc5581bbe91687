"""People who administer: their roles, where they log in, and their sessions. Pure.

Doesn't own permits (access) or how a request is authenticated (api).
"""
