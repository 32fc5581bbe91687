"""A pipeline of another team: a Temporal workflow that needs a user's account, in its own worker.

Owns its task queue, its workflow and the activity that calls the resource. Of Evergrant it uses
only the client. No token is ever in its inputs, results or history.
"""
