"""Agents: what a call of one is, whom it acts for, and how it is stopped. Pure.

Doesn't own who an agent is and until when (`core.access`), nor which calls people approve (`core.decisions`).
"""
