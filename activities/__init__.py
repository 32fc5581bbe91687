"""Activities: the side effects that workflows ask for.

Owns sending, judging and committing, in that order. Doesn't own decisions about a connection
(`core.lifecycle`) or when to act (`workflows`). Failures that a workflow decides about are
returned as results; `support.temporal` maps the others for Temporal. Each activity has a row in
`core.messages.jobs`.
"""
