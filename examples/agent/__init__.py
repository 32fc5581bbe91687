"""An agent of another team: a Temporal workflow that acts for a person for days, and never holds a token.

Owns its task queue, its workflow and its activities. It needs a person's consent and another one's word for
one call. Of Evergrant it uses the client and the gateway alone.
"""
