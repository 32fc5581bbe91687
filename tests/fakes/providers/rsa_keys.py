"""An RSA key for every test of a process: to make one takes a tenth of a second."""

from functools import cache
from typing import Any

from joserfc.jwk import RSAKey


@cache
def _pem() -> bytes:
    return RSAKey.generate_key(2048).as_pem(private=True)


def rsa_key(parameters: dict[str, Any] | None = None) -> RSAKey:
    return RSAKey.import_key(_pem(), parameters)
