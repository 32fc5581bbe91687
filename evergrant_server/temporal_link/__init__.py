"""The server's only access to Temporal outside workflows and activities.

Owns the client, the messages to workflows, the relay that delivers the outbox, reconcile, and the
preparation of a namespace. Everything else uses plain methods and never sees a Temporal type.
Doesn't decide what a connection does next: that is `core.lifecycle` in the workflow.
"""
