"""The demo: one connection's whole life against real parts, every claim observed and printed.

Owns the scripted person, the processes it starts and the observations. Speaks to Evergrant
over HTTP and to Temporal's history as any client would; imports nothing of the server.
"""
