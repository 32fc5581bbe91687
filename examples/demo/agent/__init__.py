"""The demo's agent: a process that calls an API through the gateway, and the search of its memory.

Owns the agent's program, the person who approves one of its calls, and the proof that it never had a token.
"""
