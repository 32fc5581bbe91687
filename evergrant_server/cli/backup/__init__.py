"""`backup`: takes a backup, tries one out beside the running installation, and restores one.

Owns what PostgreSQL's and SQLite's copies are made of and started with (`copies`, `postgresql`), their
verification, and the reports. Doesn't own the comparison of two copies (`store.database.copies`), nor the
workflows, which `reconcile` compares afterwards. Journals and Temporal aren't part of a backup.
"""
