"""A connection and what belongs to it: state, grant, consent, flow, credentials.

Owns the table of a connection's states and the words valid, due and fresh. Doesn't decide what
happens next: that is `lifecycle`.
"""
