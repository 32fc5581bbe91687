"""Commands for agents, and for the calls that a person approves."""
