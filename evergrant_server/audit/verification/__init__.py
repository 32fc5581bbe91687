"""Verifies the audit log: walks each tree and each chain of before, and names what is wrong with it.

Owns the walks (`walks`) and the verdict over a tenant's log (`verifier`). Doesn't own the trees
(`audit.appending`), the rule of the chains (`audit.chains`) or what outsiders check (`audit.checkpoints`).
"""
