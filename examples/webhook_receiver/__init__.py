"""Somebody who receives Evergrant's webhooks, in twenty lines and the standard library.

Owns the verification and the memory of what was done already; the rest of a receiver is its own.
"""
