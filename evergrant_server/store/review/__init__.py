"""Who reaches what, for people: reviews of permits and of broken rows, requests for access, what was leased.

Nothing is decided by these rows on the lease path, which reads `store.access` and `store.connections`.
"""
