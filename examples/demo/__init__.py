"""The demo: one connection from consent to revocation on real servers, with every claim observed.

Owns the scripted subject, the processes that it starts and the observations. Uses Evergrant over
HTTP and reads Temporal's histories as any client would; of the server it imports only how a
command ends.
"""
