"""A timestamp authority (RFC 3161) on loopback: OpenSSL answers, with a certificate of its own authority."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.http_server import served

_CONFIGURATION = """
[tsa]
default_tsa = authority
[authority]
dir = {folder}
serial = {folder}/serial
default_policy = 1.2.3.4.1
digests = sha256, sha512
signer_digest = sha256
ess_cert_id_alg = sha256
[ext]
extendedKeyUsage = critical, timeStamping
keyUsage = critical, digitalSignature
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[req]
distinguished_name = name
[name]
"""


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class TimestampAuthority:
    """Answers with `reply` in place of a stamp, when that is set."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.roots, self._folder = folder / "ca.pem", folder
        self.reply: bytes | None = None
        self._configuration = folder / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION.format(folder=folder))
        (folder / "serial").write_text("01")
        new = ("req", "-config", self._configuration, "-newkey", "rsa:2048", "-nodes")
        _openssl(
            *new, "-x509", "-days", "30", "-subj", "/CN=ca", "-extensions", "ca",
            "-keyout", folder / "ca.key", "-out", self.roots,
        )  # fmt: skip
        _openssl(*new, "-subj", "/CN=tsa", "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr")
        _openssl(
            "x509", "-req", "-in", folder / "tsa.csr", "-CA", self.roots, "-CAkey", folder / "ca.key",
            "-days", "30", "-extfile", self._configuration, "-extensions", "ext", "-out", folder / "tsa.pem",
        )  # fmt: skip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query, answer = self._folder / "query", self._folder / "answer"
        query.write_bytes((await receive())["body"])
        if self.reply is None:
            _openssl(
                "ts", "-reply", "-config", self._configuration, "-section", "authority",
                "-queryfile", query, "-signer", self._folder / "tsa.pem",
                "-inkey", self._folder / "tsa.key", "-out", answer,
            )  # fmt: skip
        kind = [(b"content-type", b"application/timestamp-reply")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        body = answer.read_bytes() if self.reply is None else self.reply
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def timestamp_authority(folder: Path) -> AsyncIterator[tuple[TimestampAuthority, str]]:
    """The authority, and its URL."""
    authority = TimestampAuthority(folder)
    async with served(authority) as url:
        yield authority, url
