"""The only way out: the HTTP transport of every outbound request.

Owns where Evergrant may connect (SSRF guard), to which address (the checked one), for how long
and for how many bytes. Knows nothing of OAuth: `providers` owns what is sent and what a response
means.
"""

from evergrant_server.egress.client import ANSWER_TIMEOUT_S, Egress, may_call_out, silence_http_debug_logs
from evergrant_server.egress.connection import UpstreamClosed
from evergrant_server.egress.policy import EgressPolicy
from evergrant_server.egress.streaming import StreamedResponse, StreamingTransport
from evergrant_server.egress.transport import BeforeSend, SendObserver
from evergrant_server.egress.unreachable import DOES_NOT_RESOLVE, tls_error, why_unreachable

silence_http_debug_logs()

__all__ = [
    "ANSWER_TIMEOUT_S",
    "DOES_NOT_RESOLVE",
    "BeforeSend",
    "Egress",
    "EgressPolicy",
    "SendObserver",
    "StreamedResponse",
    "StreamingTransport",
    "UpstreamClosed",
    "may_call_out",
    "tls_error",
    "why_unreachable",
]
