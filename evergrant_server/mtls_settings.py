"""The settings of the trusted hop: where a proxy hands on the certificates of apps, and in which format."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from evergrant_server.core.model import CheckedModel
from evergrant_server.setting_types import CertificateHeader


class MtlsSettings(CheckedModel):
    """What `serve --mtls` listens on. The listener at host and port never reads a certificate."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    mtls_url: str = ""
    """The https URL at which a proxy asks apps for their certificates; empty: none does. The authorization
    server's metadata names it (RFC 8705 section 5)."""
    mtls_header: CertificateHeader | None = None
    """How that proxy hands a certificate on: `rfc9440` (`Client-Cert`: HAProxy and others), `nginx`
    (`Ssl-Client-Cert` with `$ssl_client_escaped_cert`) or `envoy` (`X-Forwarded-Client-Cert` with `Cert`). It
    needs a hop that only the proxy reaches: a socket, or a port with `mtls_proxy_ca`."""
    mtls_socket: Path | None = None
    """The unix socket on which `serve --mtls` listens. Its user and group alone can open it (mode 0660), and
    may be any app: the proxy must be the group's only other member."""
    mtls_host: str = "127.0.0.1"
    """The address on which `serve --mtls` listens with TLS."""
    mtls_port: int | None = Field(default=None, ge=1, le=65535)
    """The port on which `serve --mtls` listens with TLS 1.3, in place of a socket."""
    mtls_certificate: Path | None = None
    """The certificate of `mtls_port`, PEM."""
    mtls_key: Path | None = None
    """The private key of `mtls_certificate`, PEM (PKCS #8)."""
    mtls_proxy_ca: Path | None = None
    """A private authority, PEM. Each certificate that it issues may say that it is any app: the proxy's
    must be the only one."""

    @model_validator(mode="after")
    def _require_trusted_hop(self) -> "MtlsSettings":
        over_tls = (self.mtls_certificate, self.mtls_key, self.mtls_proxy_ca)
        if self.mtls_socket is not None and self.mtls_port is not None:
            raise ValueError("EVERGRANT_MTLS_SOCKET and EVERGRANT_MTLS_PORT: give one of them")
        if self.mtls_port is None and any(over_tls):
            raise ValueError("EVERGRANT_MTLS_CERTIFICATE, _KEY and _PROXY_CA belong to EVERGRANT_MTLS_PORT")
        if self.mtls_port is not None and not all(over_tls):
            raise ValueError(
                "EVERGRANT_MTLS_PORT: any client could send a certificate's header there; it needs "
                "EVERGRANT_MTLS_CERTIFICATE, EVERGRANT_MTLS_KEY and EVERGRANT_MTLS_PROXY_CA"
            )
        if self.mtls_header is not None and not self.has_trusted_hop:
            raise ValueError(
                "EVERGRANT_MTLS_HEADER: any client could send that header; it needs a hop that only the "
                "proxy reaches: EVERGRANT_MTLS_SOCKET, or EVERGRANT_MTLS_PORT with EVERGRANT_MTLS_PROXY_CA"
            )
        if self.has_trusted_hop and self.mtls_header is None:
            raise ValueError("EVERGRANT_MTLS_HEADER: name the format of the proxy: rfc9440, nginx or envoy")
        self.mtls_url = self.mtls_url.rstrip("/")
        url = urlsplit(self.mtls_url)
        if self.mtls_url and (url.scheme != "https" or not url.hostname or url.path or url.query):
            raise ValueError("EVERGRANT_MTLS_URL must be https://host[:port], without a path")
        return self

    @property
    def has_trusted_hop(self) -> bool:
        return self.mtls_socket is not None or self.mtls_port is not None
