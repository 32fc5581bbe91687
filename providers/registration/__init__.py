"""Discovery of a server's metadata (RFC 8414) and registration of a client there (RFC 7591).

Owns reading both documents and comparing new metadata with the pinned. Doesn't decide when to
register and doesn't write to the store (`activities.integrations`).
"""
