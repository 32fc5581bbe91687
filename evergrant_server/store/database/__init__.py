"""The database below the repositories: SQLite or PostgreSQL, opened, spoken to and migrated.

Owns connections and transactions, the schema's version, column types, the few statements that
every repository is made of, and what a driver's error means. Doesn't own any table.
"""
