"""What other HTTP libraries than httpx2 take, and the agent frameworks that are built on them.

Owns no decision: `evergrant.auth` says which token a request gets.
"""
