"""Rows of event receivers, of received events, account identifiers, and the schedule of introspections.

Doesn't own what an event means for a grant (core, audit).
"""
