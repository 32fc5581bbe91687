"""Activities of recurring and delivery workflows: reconcile, introspection, histories, webhook deliveries.

Owns the passes that a Temporal Schedule starts, and what each run of them may do at most. Doesn't
own the repair of one connection, which is `temporal_link`'s, nor rereading of issuers' metadata,
which belongs to `integrations`.
"""
