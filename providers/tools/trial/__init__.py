"""`providers try`: one real consent, refresh, refusal and revocation at a provider, by its definition.

Owns the steps, what each one saw beside what the definition says, and the vector without secrets. Sends
with `providers.requests` and reads with `providers.responses`, as the worker does. Stores nothing.
"""
