"""Security events that providers send: signatures verified, events parsed. Pure but for `keys`.

Owns one module for each way of signing, and the table of verifiers. Doesn't decide what an event
means for a connection (`evergrant_server.core.provider_events`).
"""
