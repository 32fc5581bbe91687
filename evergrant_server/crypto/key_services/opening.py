"""The key service that a URL names: a backend's module, with its client's library, is imported here alone."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from evergrant_server.crypto.key_services.bound import SLACK_S, BoundKeyService
from evergrant_server.crypto.key_services.port import CALL_LIMIT_S, ServiceUrl


class _Backend(NamedTuple):
    module: str  # with `open_service(ServiceUrl) -> KeyService`
    extra: str | None  # of the package, which brings the client's library


BACKENDS = {
    "file": _Backend("key_file", None),
    "aws-kms": _Backend("aws_kms", "aws"),
    "vault": _Backend("vault", "vault"),
    "pkcs11": _Backend("pkcs11", "pkcs11"),
    "gcp-kms": _Backend("gcp_kms", "gcp"),
    "azure": _Backend("azure", "azure"),
}


def open_key_service(text: str, key_file: Path, limit_s: float = CALL_LIMIT_S) -> BoundKeyService:
    """The service of this URL; `file` alone is the key file of the settings. Nothing is called yet.

    Raises ValueError that says what is wrong with the URL, or which extra of the package is missing.
    """
    url = replace(ServiceUrl.parse(text if text != "file" else f"file:{key_file}"), limit_s=limit_s)
    backend = BACKENDS.get(url.scheme)
    if backend is None:
        raise ValueError(f"there is no key service {url.scheme!r}: use {', '.join(BACKENDS)}")
    try:
        module = import_module(f"evergrant_server.crypto.key_services.{backend.module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the key service {url.scheme} needs the package {error.name}: "
            f"pip install 'evergrant-server[{backend.extra}]'"
        ) from None
    return BoundKeyService(module.open_service(url), limit_s + SLACK_S)
