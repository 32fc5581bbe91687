"""Agents: the calls that wait for a person's approval, and how an agent is stopped. Pure.

Doesn't own who an agent is and until when (`core.access`), nor where requests are kept (store).
"""
