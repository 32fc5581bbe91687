"""The words of Evergrant as pure code: states, events, grants, schedules, failures, messages.

Imports the standard library and pydantic, nothing else: workflows import it inside
Temporal's sandbox. Time and chance are arguments here; nothing in this package reads a
clock inside a predicate, opens a file or talks to a network.
"""
