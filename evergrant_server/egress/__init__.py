"""The only way out: the HTTP transport every outbound call goes through.

Owns where Evergrant may connect (SSRF guard), to which address (the checked one), for how
long and for how many bytes. Doesn't know OAuth: what is sent and what an answer means is
the business of `providers`.
"""

from evergrant_server.egress.client import ANSWER_TIMEOUT_S, BODY_LIMIT, CONNECT_TIMEOUT_S, Egress
from evergrant_server.egress.http_logging import silence_http_debug_logs
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.transport import BeforeSend, GuardedTransport, SendObserver

silence_http_debug_logs()

__all__ = [
    "ANSWER_TIMEOUT_S",
    "BODY_LIMIT",
    "CONNECT_TIMEOUT_S",
    "BeforeSend",
    "Egress",
    "EgressPolicy",
    "GuardedTransport",
    "SendObserver",
    "silence_http_debug_logs",
]
