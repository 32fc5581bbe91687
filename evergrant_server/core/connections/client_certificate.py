"""A client certificate, with which Evergrant authenticates at a provider (RFC 8705 section 2)."""

import json
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.secret import Secret


class ClientCertificate(BaseModel):
    """`certificate` is PEM, ours first and then what it was signed with; `private` is its key, as PEM.

    Never a message: its secret refuses to be serialised, except into another secret.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    certificate: str
    private: Secret
    expires_at: datetime

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        plain = {"certificate": self.certificate, "private": self.private.reveal()}
        return Secret(json.dumps({**plain, "expires_at": self.expires_at.isoformat()}))

    @classmethod
    def from_secret(cls, text: Secret) -> "ClientCertificate":
        return cls.model_validate(json.loads(text.reveal()))
