"""Somebody else's pipeline: a Temporal workflow that needs an account of a user's, in its own worker.

Owns its task queue, its workflow and the one activity that calls the resource. Of Evergrant it
uses the client alone; no token is ever in its inputs, results or history.
"""
