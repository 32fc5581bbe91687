"""The stream of audit records that an operator sets for the whole installation. Secrets are read from
files."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from evergrant_server.core.audit_streams.stream import StreamBegin, StreamFormat
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.secret import Secret
from evergrant_server.settings.errors import BadSettings

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_PORTS = {"https": 443, "http": 80}


class AuditStreamSettings(CheckedModel):
    """Where a worker sends every tenant's audit records, and as what."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    audit_stream_url: str = Field(default="", repr=False)
    """The URL to which a worker sends the audit records of every tenant, such as that of a SIEM or of an
    OpenTelemetry collector (`http://collector:4318/v1/logs`). It may be private and plain http; no tenant
    may go there by that. Empty: none. See docs/guide/audit-streams.md."""
    audit_stream_format: Literal["cloudevents", "ocsf", "otlp"] = "cloudevents"
    """What it is sent: CloudEvents 1.0, OCSF 1.8, or OpenTelemetry logs (protobuf over HTTP)."""
    audit_stream_begin: Literal["now", "oldest"] = "oldest"
    """Where it begins when it is new: at the oldest record, or behind all that are there."""
    audit_stream_headers_file: Path | None = None
    """A file of headers that are sent with each batch, one `Name: value` a line, such as `Authorization`."""
    audit_stream_secret_file: Path | None = None
    """A file with a secret (`whsec_` and base64) by which each batch is signed, as webhooks are."""

    @model_validator(mode="after")
    def _require_receiver(self) -> "AuditStreamSettings":
        url = urlsplit(self.audit_stream_url)
        if self.audit_stream_url and (url.scheme not in _PORTS or not url.hostname or "@" in url.netloc):
            raise ValueError("EVERGRANT_AUDIT_STREAM_URL must be http(s)://host[:port]/path, without a user")
        if not self.audit_stream_url and (self.audit_stream_headers_file or self.audit_stream_secret_file):
            raise ValueError(
                "EVERGRANT_AUDIT_STREAM_HEADERS_FILE and _SECRET_FILE need EVERGRANT_AUDIT_STREAM_URL"
            )
        return self

    @property
    def stream_format(self) -> StreamFormat:
        return StreamFormat(self.audit_stream_format)

    @property
    def stream_begin(self) -> StreamBegin:
        return StreamBegin(self.audit_stream_begin)

    @property
    def stream_host_port(self) -> str:
        """`host:port` of the receiver, as an allowance of the egress guard."""
        url = urlsplit(self.audit_stream_url)
        host, port = url.hostname or "", url.port or _PORTS[url.scheme]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def stream_headers(self) -> dict[str, Secret]:
        """The headers of the file. Raises BadSettings that names file and line."""
        if self.audit_stream_headers_file is None:
            return {}
        headers: dict[str, Secret] = {}
        text = _text_of("EVERGRANT_AUDIT_STREAM_HEADERS_FILE", self.audit_stream_headers_file)
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _HEADER.fullmatch(line.strip())
            if match is None:
                where = (
                    f"EVERGRANT_AUDIT_STREAM_HEADERS_FILE: line {number} of {self.audit_stream_headers_file}"
                )
                raise BadSettings(f"{where} is no header; write Name: value")
            headers[match[1]] = Secret(match[2])
        return headers

    def stream_secrets(self) -> tuple[Secret, ...]:
        """The secret of the file, if there is one. Raises BadSettings that names it."""
        if self.audit_stream_secret_file is None:
            return ()
        text = _text_of("EVERGRANT_AUDIT_STREAM_SECRET_FILE", self.audit_stream_secret_file).strip()
        if re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,}={0,2}", text) is None or len(text[6:]) % 4:
            raise BadSettings(
                f"EVERGRANT_AUDIT_STREAM_SECRET_FILE: {self.audit_stream_secret_file} holds no secret; write "
                "whsec_ and 24 to 64 random bytes in base64 into it"
            )
        return (Secret(text),)


def _text_of(name: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise BadSettings(f"{name}: {file} can't be read ({reason})") from None
