"""Hosts that wait until an operator accepts them (ADR 0066).

Owns which hosts wait for which connections, and what the commands `authority hosts`, `accept-hosts` and
`accept --all` write. Resolves definitions, which the store doesn't know. Doesn't decide whether a secret is
sent: `providers.requests.hosts` does.
"""
