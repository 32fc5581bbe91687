"""`/oauth/authorize`: a person lets an OAuth client act for them at the gateway, for one resource.

Doesn't own registration, metadata and tokens (`api.oauth`), nor consents at providers (`api.pages`).
"""
