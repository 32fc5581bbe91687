"""Replies of providers: tokens, durations, and failures sorted by who repairs them.

Owns parsing and the mapping of errors. Every function is pure. Doesn't send requests
(`providers.requests`) and doesn't decide about retries (activities).
"""
