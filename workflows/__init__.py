"""Temporal workflows: deterministic and thin. They ask `core` what to do, and call activities for it.

Owns the order of things in time. Parses no reply, knows no provider, holds no secret; side effects
are reached through `runs.call` alone, within the limits of the table in `core.messages.jobs`.

Imports nothing here: the sandbox runs this file anew for each workflow instance.
"""
