"""A client certificate, with which Evergrant authenticates at a provider (RFC 8705 section 2)."""

from datetime import datetime

from evergrant_server.core.secret import SealableModel, Secret


class ClientCertificate(SealableModel):
    """`certificate` is PEM, ours first and then what it was signed with; `private` is its key, as PEM."""

    certificate: str
    private: Secret
    expires_at: datetime
