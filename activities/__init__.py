"""Side effects, one class per collaborator: what workflows have done for them.

Owns sending, judging and committing, in that order; decides nothing about a connection's
life. Domain failures go back as results; `failures` maps the rest for Temporal.
"""
