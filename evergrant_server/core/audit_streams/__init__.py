"""Streams of the audit log to receivers: what one is (`stream`) and how far it is (`state`). Pure.

Doesn't own what waits and what a record becomes (`audit.streams`) nor sending (a worker).
"""
