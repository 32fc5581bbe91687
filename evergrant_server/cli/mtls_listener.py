"""Where `serve --mtls` listens: the socket, or the port and its files, checked before granian gets them."""

import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

from evergrant_server.crypto.client_certificates import authorities_of_pem
from evergrant_server.settings import BadSettings, Settings

SOCKET_MODE = 0o660  # its user and group alone


def mtls_listener(settings: Settings) -> dict[str, Any]:
    """granian's options for the trusted hop. Raises BadSettings."""
    if settings.mtls_socket is not None:
        require_free_socket(settings.mtls_socket)
        return {"uds": settings.mtls_socket, "uds_permissions": SOCKET_MODE}
    if settings.mtls_port is None:
        raise BadSettings("--mtls: set EVERGRANT_MTLS_SOCKET, or EVERGRANT_MTLS_PORT with its files")
    require_usable_files(settings)
    return {
        "address": settings.mtls_host,
        "port": settings.mtls_port,
        "ssl_cert": settings.mtls_certificate,
        "ssl_key": settings.mtls_key,
        "ssl_ca": settings.mtls_proxy_ca,
        "ssl_client_verify": True,
    }


def require_free_socket(path: Path) -> None:
    """Remove the socket of a process that was killed. Raises BadSettings for a path that can't be used."""
    reason = None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            reason = "a process listens there"
        except FileNotFoundError:
            if not path.parent.is_dir():
                reason = f"there is no folder {path.parent}"
        except ConnectionRefusedError:
            if stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()
            else:
                reason = "it is no socket"
        except OSError as error:  # a path that is too long has no errno
            reason = error.strerror or str(error)
    if reason is None and not os.access(path.parent, os.W_OK | os.X_OK):
        reason = f"{path.parent} can't be written"
    if reason is not None:
        raise BadSettings(f"EVERGRANT_MTLS_SOCKET: {path} can't be used ({reason})")


def require_usable_files(settings: Settings) -> None:
    """Check the certificate, its key and the proxy's authority. Raises BadSettings."""
    certificate, key, authority = settings.mtls_certificate, settings.mtls_key, settings.mtls_proxy_ca
    assert certificate is not None
    assert key is not None
    assert authority is not None
    _read("EVERGRANT_MTLS_CERTIFICATE", certificate)
    if "BEGIN PRIVATE KEY" not in _read("EVERGRANT_MTLS_KEY", key):
        raise BadSettings(f"EVERGRANT_MTLS_KEY: {key} is no PEM of PKCS #8; openssl pkcs8 -topk8 makes one")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        reason = error.reason or "can't be read"
        raise BadSettings(f"EVERGRANT_MTLS_CERTIFICATE: {certificate} and its key: {reason}") from None
    try:
        authorities_of_pem(_read("EVERGRANT_MTLS_PROXY_CA", authority))
    except ValueError as error:
        raise BadSettings(f"EVERGRANT_MTLS_PROXY_CA: {authority}: {error}") from None


def _read(setting: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not PEM"
        raise BadSettings(f"{setting}: {path} can't be read ({reason})") from None
