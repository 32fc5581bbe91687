"""Debian's nginx and HAProxy on loopback, with the configurations of deploy/mtls.

    async with proxied("nginx", folder, {"/run/evergrant/mtls.sock": str(socket)}) as port: ...

`requirements/debian.sh` unpacks them beside the interpreter; without it those on PATH are used. A test is
skipped, with the reason, where there is neither.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

EXAMPLES = Path(__file__).parents[3] / "deploy" / "mtls"
_UNPACKED = Path(sys.prefix) / "debian"
_NGINX_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program(name: str) -> tuple[str, dict[str, str]]:
    """The program and the environment it needs; skips the test when this machine has none."""
    unpacked = next((_UNPACKED / "usr").glob(f"*bin/{name}"), None)
    if unpacked is not None:
        libraries = {str(path.parent) for path in (_UNPACKED / "usr" / "lib").rglob("*.so*")}
        own = {"OPENSSL_CONF": str(_UNPACKED / "etc" / "ssl" / "openssl.cnf")}
        return str(unpacked), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries)), **own}
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is None:
        pytest.skip(f"no {name}: neither on PATH nor in {_UNPACKED} (bash requirements/debian.sh VENV)")
    return found, dict(os.environ)


@asynccontextmanager
async def proxied(name: str, folder: Path, places: Mapping[str, str]) -> AsyncIterator[int]:
    """The example's proxy on a free port, for the length of a block; `places` replaces parts of it."""
    port = free_port()
    text = next(EXAMPLES.glob(f"{name}.*")).read_text()
    listens = {"listen 443": f"listen 127.0.0.1:{port}", "bind :443": f"bind 127.0.0.1:{port}"}
    for old, new in {**listens, **places}.items():
        text = text.replace(old, new)
    binary, env = program(name)
    log = folder / f"{name}.log"
    config = folder / f"{name}.conf"
    if name == "nginx":
        own = "".join(f"{it}_temp_path {folder / it};" for it in _NGINX_TEMPORARY)
        text = text.replace("http {", f"http {{ access_log off; {own}")
        directives = f"daemon off; master_process off; pid {folder / 'nginx.pid'};"
        command = [binary, "-e", str(log), "-p", str(folder), "-c", str(config), "-g", directives]
    else:
        command = [binary, "-db", "-f", str(config)]
    config.write_text(text)
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=output, stderr=output)
    try:
        await until_open(port, child, log)
        yield port
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def until_open(port: int, child: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if child.returncode is not None:
                raise RuntimeError(f"the proxy ended, see {log}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return
