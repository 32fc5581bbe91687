"""Calls for agents: who they are, the calls that a person approves, and stops."""
