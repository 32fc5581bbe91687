"""Agents: the waiting of a call for a person, and the end of what a stopped agent has left.

Owns the waiting. Owns neither decisions (api) nor what is due (core).
"""
