"""Single-use credentials: when one may be sent (again), and when a failing provider is left alone.

The rules of docs/protocol.md as pure functions. The journal, the store and the sending are
`journal`, `store` and `activities.single_use`.
"""
