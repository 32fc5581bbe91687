"""`/v1/integrations` and `/v1/providers`: OAuth clients at providers, and the tenant's own definitions.

Doesn't own the catalogue and the schema of definitions (providers) or discovery (a worker's).
"""
