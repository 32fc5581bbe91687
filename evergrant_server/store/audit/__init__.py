"""Rows of the audit log that repositories read and write: its checkpoints.

Doesn't own its tables of records and trees (`store.audit_tables`), which `audit` writes itself.
"""
