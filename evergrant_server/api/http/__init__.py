"""HTTP as the API's routes use it: middleware, idempotency, bodies, cursors, and the answers to errors.

Knows no feature of the API. Doesn't own routes, nor whether a request is allowed (access).
"""
