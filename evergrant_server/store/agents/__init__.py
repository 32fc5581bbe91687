"""Apps that act for people: who answers for an agent, delegations, and stops.

Read with authenticators. Doesn't own keys, tokens and permits (`access`, `authentication`).
"""
