"""Configuration as files: what `evergrant plan` and `evergrant apply` read, compare and send.

Owns the folder's format, the order of changes, and what a run prints. Each change is a PUT or DELETE of the
API; whether one changes anything, the API says by a dry run.
"""
