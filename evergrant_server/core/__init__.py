"""The domain as pure code: connections, their lifecycle, single-use credentials, failures, messages.

Imports only the standard library and pydantic: workflows import it inside Temporal's sandbox. Time
and chance are arguments; no function here opens a file or a connection to a network.
"""
