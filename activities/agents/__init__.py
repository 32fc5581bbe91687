"""Agents: the moments of calls that wait for an approval, and what a stopped agent has left.

Doesn't own decisions (a person's, by the API) nor when to act (workflows, core).
"""
