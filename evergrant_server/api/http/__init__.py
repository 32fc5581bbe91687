"""What every route uses: authentication, problem documents, idempotency, cursors, tracing, limits.

Knows no feature of the API. Doesn't own routes.
"""
