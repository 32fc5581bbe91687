"""The HTTP API and the subject's pages.

Owns the routes, authentication of apps, the lease path, problem documents, cursors and
idempotency. Doesn't own what a permit allows (policy), how rows are stored (store), the format
of an audit record (audit), or requests to a provider: a worker sends those, and the API
reaches it through the outbox and `http.temporal_port`. Stateless: any number of copies.
"""
