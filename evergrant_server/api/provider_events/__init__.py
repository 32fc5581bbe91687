"""Receivers of providers' security events (RFC 8935) and webhooks, and their verification on arrival.

Doesn't own signature formats (providers.events) or what an event does to a connection (core, audit).
"""
