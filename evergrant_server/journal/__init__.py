"""The journal: answers of providers that spent a single-use credential, until the store has them.

Owns one persistent directory per worker volume, named by its `journal_id` and held with
`flock` for as long as its owner lives: encrypted, fsynced entries, one for each answer,
written before the database is told and dropped after the database has committed. Owns
also the question whether the owner of another journal on this host is alive, and the
replay of entries that an owner left behind. Doesn't own attempts (the store's rows), the
decision to send again (`core.attempt.takeover`) or any request to a provider.
"""
