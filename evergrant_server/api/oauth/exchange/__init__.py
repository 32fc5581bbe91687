"""The grant `urn:ietf:params:oauth:grant-type:token-exchange`: an app acts for a person (RFC 8693).

Owns which tokens of people and which delegations begin one, and that it is narrower and shorter than these.
Doesn't own how a use of one is judged (`access.callers`, policy), nor its row (store).
"""
