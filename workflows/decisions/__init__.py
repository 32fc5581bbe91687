"""Waiting for a person's decision: on a request for access, and on an agent's call.

Owns the waiting. Owns neither decisions (api) nor what is due (core).
"""
