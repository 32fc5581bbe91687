"""Checkpoints: what the log signs, and what it proves by it to those who don't trust its database.

Owns the heads log (`heads`), the notes and receipts that are signed (`notes`) and proofs (`proofs`). Doesn't
own the trees (`audit.appending`), the rows (`store.audit.checkpoints`) or where checkpoints are kept outside
(`activities.anchors`).
"""
