"""The gateway: requests to providers' APIs with the credential put in, from a process and origin of its own.

Owns the strict HTTP server, the proxy and its streams. Doesn't own whether a call is allowed (access), where
Evergrant may connect (egress), or tokens at rest (store). It opens access tokens alone: its key file has
neither refresh keys nor client secrets.
"""
