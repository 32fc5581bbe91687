"""Agents: what a stopped agent has left.

Doesn't own the order to stop (a person's, by the API) nor when to act (workflows, core).
"""
