"""A pushed authorization request (RFC 9126): its fields, and the reference that a worker gets. Pure."""

import json
from dataclasses import dataclass, field
from datetime import datetime

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PushedAuthorization:
    """First `fields` alone; then a `request_uri` until `expires_at`, or the failure that came instead.

    The fields hold the state and the reference is as good as they are, so neither shows itself.
    """

    fields: Fields = field(default=(), repr=False)
    request_uri: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    failure: Failure | None = None

    @property
    def is_answered(self) -> bool:
        return self.request_uri is not None or self.failure is not None

    def as_secret(self) -> Secret:
        """All of it as one text, for a sealer."""
        failure = self.failure
        plain = {
            "fields": self.fields,
            "request_uri": self.request_uri,
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
            "failure": failure.code.value if failure else None,
            "detail": failure.detail if failure else None,
        }
        return Secret(json.dumps(plain))

    @classmethod
    def from_secret(cls, text: Secret) -> "PushedAuthorization":
        plain = json.loads(text.reveal())
        expires_at, failure = plain["expires_at"], plain["failure"]
        return cls(
            fields=tuple((name, value) for name, value in plain["fields"]),
            request_uri=plain["request_uri"],
            expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
            failure=Failure(ErrorCode(failure), plain["detail"] or "") if failure else None,
        )
