"""The HTTP API and the subject's pages: who asks, may they, and what they are answered.

Owns routes, authentication of apps, the lease path, problem documents, cursors and
idempotency. Doesn't own what a permit allows (policy), what is stored (store), what a
record looks like (audit) or anything that is sent to a provider: that is a worker's, and
reached through the outbox and `ports.TemporalPort`. Stateless: any number of copies.
"""
