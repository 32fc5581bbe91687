"""Settings of the audit log's checkpoints: what the log is called, and where they are kept outside of it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic_settings import NoDecode

from evergrant_server.core.model import CheckedModel
from evergrant_server.settings.types import Duration


def _witnesses(value: Any) -> Any:
    """`KEY URL`, several of them separated by commas."""
    if not isinstance(value, str):
        return value
    pairs = [tuple(pair.split()) for pair in value.split(",") if pair.strip()]
    for pair in pairs:
        if len(pair) != 2 or pair[0].count("+") < 2 or urlsplit(pair[1]).scheme not in ("http", "https"):
            raise ValueError("write KEY URL of each witness, as it prints its key; commas between several")
    return tuple((key, url.rstrip("/")) for key, url in pairs)


class AuditSettings(CheckedModel):
    """What the log is called, and its anchors."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    audit_log_name: str = ""
    """What the audit log is called in its checkpoints, such as `evergrant.example/audit`; empty: the public
    URL's host and `/audit`. It counts when the first worker makes the log's key, and stays."""
    audit_witnesses: Annotated[tuple[tuple[str, str], ...], NoDecode, BeforeValidator(_witnesses)] = ()
    """Witnesses that sign checkpoints: the public key and the URL of each (`evergrant audit witness` prints
    both). Comma-separated."""
    audit_store: str = ""
    """A bucket with object lock that keeps checkpoints: `s3://BUCKET/PREFIX?days=400`, and `region` or
    `endpoint` where needed. Its credentials are found as boto3 finds them."""
    audit_timestamps: str = ""
    """The URL of a timestamp authority (RFC 3161)."""
    audit_timestamps_ca: Path | None = None
    """The certificates that the authority's must lead to, PEM."""
    audit_anchor_interval: Duration = timedelta(minutes=1)
    """How often witnesses and the bucket are given the newest checkpoint, if there is a new one."""
    audit_timestamp_interval: Duration = timedelta(hours=1)
    """The same for the timestamp authority."""
    audit_anchor_late: Duration = timedelta(minutes=15)
    """How old a checkpoint may become that an anchor hasn't kept, beyond the interval, until that is an
    alarm. It stops nothing."""

    @model_validator(mode="after")
    def _require_roots(self) -> "AuditSettings":
        if bool(self.audit_timestamps) != (self.audit_timestamps_ca is not None):
            raise ValueError("EVERGRANT_AUDIT_TIMESTAMPS and EVERGRANT_AUDIT_TIMESTAMPS_CA: give both")
        if any(sign.isspace() or sign in "+/" for sign in self.audit_log_name.replace("/", "")):
            raise ValueError("EVERGRANT_AUDIT_LOG_NAME must be without spaces and +")
        return self

    def log_name(self, public_url: str) -> str:
        """The name of a log that is made now."""
        return self.audit_log_name or f"{urlsplit(public_url).netloc}/audit"
