"""Apps that act for people: who answers for an agent, the calls that wait for an approval, and stops.

Read with authenticators. Doesn't own keys, tokens and permits (`access`, `authentication`).
"""
