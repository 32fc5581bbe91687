"""Rows of apps, their keys and permits, and of responses stored for an `Idempotency-Key`.

Doesn't own what a permit allows (policy) or authentication (api).
"""
