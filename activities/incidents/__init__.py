"""Incidents: connections are stopped, revoked, or given new keys and tokens, and what became of each is told.

Doesn't own what a connection's workflow does when it is told, nor how keys are replaced (`activities.keys`).
"""
