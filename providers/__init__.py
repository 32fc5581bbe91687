"""How providers implement OAuth: definitions as data, and the code that sends requests and reads replies.

Owns the catalogue, the requests to providers and the meaning of their replies. Doesn't own when to
send (workflows), what to keep (the store) or which addresses are allowed (`evergrant_server.egress`).
A provider's peculiarity is a field of its definition or a named hook in `quirks.py`; no code compares
a provider's name.
"""
