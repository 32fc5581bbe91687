"""Incidents and bulk orders: what is done with many connections, and what became of each.

Doesn't own what a connection's workflow does when it is told, nor how keys are replaced (`activities.keys`).
"""
