"""The protocol for single-use credentials (docs/protocol.md), for every flow that spends one.

Owns attempts from intent to end: the send fence, the critical section, journal entries and their
replay, and the circuit breakers that a request has to pass. Doesn't own the decisions (pure, in
`core.single_use`), the journal's files (`evergrant_server.journal`), or what a reply means.
"""
