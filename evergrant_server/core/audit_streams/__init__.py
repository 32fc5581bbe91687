"""Streams of the audit log to receivers: what one is (`stream`) and how far it is (`state`). Pure.

Doesn't own what a record becomes (`audit.formats`), what waits (`audit.streams`) nor sending (a worker).
"""
