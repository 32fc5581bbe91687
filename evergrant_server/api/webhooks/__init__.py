"""`/v1/webhooks`: subscriptions to events, their signing secrets, and the delivery log.

Doesn't own delivery (a worker's) or the events (core).
"""
