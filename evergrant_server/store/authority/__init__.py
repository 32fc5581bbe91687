"""Authority of rows: which fields an authenticator covers, which rows are broken, what a gateway may write.

Doesn't own the keys (crypto), nor the rows: each repository checks its own.
"""
