"""What the audit log costs, and that tampered copies of it are named.

Owns what is measured (`costs`, and `chained`, the hash chain of before) and the copies (`tampered`). Doesn't
own the ledger's part of `python -m bench` (`bench.ledger`).
"""
