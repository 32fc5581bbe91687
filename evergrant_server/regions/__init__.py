"""Two regions: what this process waits for in the other one, and whether this one may serve.

PostgreSQL replicates; nothing here does. A region is a database with its own Temporal, APIs and workers; the
other region's database is a standby of it. Owns the barrier and the renewal of the authority; `store.regions`
has the rows.
"""
