"""Replies of providers: tokens, accounts, durations, and failures sorted by who repairs them.

Owns parsing and the mapping of errors; every function is pure but `accounts.send_lookup`. Doesn't
send token requests (`providers.requests`) and doesn't decide about retries (activities).
"""
