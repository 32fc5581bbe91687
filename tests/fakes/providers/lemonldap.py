"""Debian's LemonLDAP::NG, a portal in Perl: `invalid_request` alone for a spent or an ended refresh token.

`requirements/debian.sh` unpacks it; its tests are skipped, with the reason, where there is none.
"""

import os
import shutil
import sys
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port
from tests.fakes.providers.real_servers import PROGRAMS, ControlledServer

_PREFIXES = (Path(sys.prefix) / "debian" / "usr", Path("/usr"))
_PORTAL = Path("share") / "lemonldap-ng" / "portal" / "templates"


class LemonLdap(ControlledServer):
    """Its refresh tokens are offline sessions, which rotate and end with their user."""

    name = "lemonldap-ng"
    scopes = ("openid", "offline_access")
    says_nothing = True

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        perl = shutil.which("perl")
        if perl is None or not any((prefix / _PORTAL).is_dir() for prefix in _PREFIXES):
            pytest.skip(
                f"no {cls.name}, neither installed nor in {_PREFIXES[0]} (bash requirements/debian.sh VENV)"
            )
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "private.pem").write_bytes(private)
        (folder / "public.pem").write_bytes(public)
        (folder / "lemonldap.ini").write_text("[all]\nlogLevel = error\n[configuration]\ntype = Local\n")
        return perl, [str(PROGRAMS / "lemonldap.pl"), str(folder), str(free_port())]

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str]:
        prefix = next(prefix for prefix in _PREFIXES if (prefix / _PORTAL).is_dir())
        libraries = (
            [path.parent for path in (prefix / "lib").glob("*/*.so*")] if prefix != _PREFIXES[-1] else []
        )
        modules = [prefix / "share" / "perl5", *prefix.glob("lib/*/perl5/*")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(sorted({str(path) for path in libraries})),
            "PERL5LIB": os.pathsep.join(map(str, modules)),
            "LLNG_DEFAULTCONFFILE": str(folder / "lemonldap.ini"),
            "LLNG_TEMPLATES": str(prefix / _PORTAL),
        }

    async def consent(self, url: str, user: str) -> str:
        await self.control(add_user=user)
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as browser:
            return (await browser.post(url, data={"user": user, "password": user})).headers["location"]
