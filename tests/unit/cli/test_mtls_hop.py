"""The trusted hop: no start without one, files and sockets that can't be used, and what the doctor finds."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.cli.doctor import CheckFailed, mtls
from evergrant_server.cli.mtls_listener import mtls_listener
from evergrant_server.settings import BadSettings, Settings, load_settings
from tests.fakes.certificates import Authority, loopback_tls
from tests.fakes.http_server import listening, read_request


def files(folder: Path) -> dict[str, Any]:
    authority = Authority()
    ours = authority.issue(dns=("evergrant.internal",))
    for name, text in {"ca": authority.pem, "cert": ours.certificate, "key": ours.private}.items():
        (folder / name).write_text(text)
    return {
        "mtls_header": "rfc9440",
        "mtls_port": 20_001,
        "mtls_certificate": folder / "cert",
        "mtls_key": folder / "key",
        "mtls_proxy_ca": folder / "ca",
    }


def test_a_header_format_without_a_trusted_hop_is_refused(tmp_path: Path) -> None:
    whole = files(tmp_path)
    load_settings(data_dir=tmp_path, **whole)
    for given, named in (
        ({"mtls_header": "rfc9440"}, "MTLS_HEADER"),
        ({"mtls_header": "nginx", "mtls_url": "https://mtls.example"}, "MTLS_HEADER"),
        ({"mtls_header": "x-client-cert", "mtls_socket": tmp_path / "s"}, "MTLS_HEADER"),
        ({"mtls_socket": tmp_path / "s"}, "MTLS_HEADER"),
        ({"mtls_header": "rfc9440", "mtls_port": 20_001}, "MTLS_PORT"),
        ({**whole, "mtls_proxy_ca": None}, "MTLS_PROXY_CA"),
        ({**whole, "mtls_socket": tmp_path / "s"}, "one of them"),
        ({**whole, "mtls_port": None}, "MTLS_CERTIFICATE"),
        ({**whole, "mtls_url": "http://mtls.example"}, "MTLS_URL"),
        ({**whole, "mtls_url": "https://mtls.example/oauth"}, "MTLS_URL"),
    ):
        with pytest.raises(BadSettings, match=named):
            load_settings(data_dir=tmp_path, **given)


def test_serve_mtls_without_a_hop_or_with_unusable_files_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="--mtls"):
        mtls_listener(load_settings(data_dir=tmp_path))
    given = files(tmp_path)
    settings = load_settings(data_dir=tmp_path, **given)
    assert mtls_listener(settings)["ssl_client_verify"] is True
    leaf = (tmp_path / "cert").read_text()
    for name, text, named in (
        ("ca", leaf, "MTLS_PROXY_CA"),
        ("ca", "", "MTLS_PROXY_CA"),
        ("key", Authority().issue().private, "MTLS_CERTIFICATE.*MISMATCH"),
        ("key", leaf, "MTLS_KEY.*PKCS #8"),
        ("cert", "é", "MTLS_CERTIFICATE.*not PEM"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(BadSettings, match=named):
            mtls_listener(settings)
        (tmp_path / name).write_text(before)
    (tmp_path / "key").unlink()
    with pytest.raises(BadSettings, match="No such file"):
        mtls_listener(settings)


def on_socket(path: Path) -> Settings:
    return load_settings(data_dir=path.parent, mtls_header="nginx", mtls_socket=path)


def test_the_socket_of_a_killed_process_is_taken_over_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(BadSettings, match="a process listens there"):
            mtls_listener(on_socket(path))
    assert mtls_listener(on_socket(path)) == {"uds": path, "uds_permissions": 0o660}
    assert not path.exists()
    path.write_text("precious")
    for unusable in (path, tmp_path / "none" / "s", tmp_path / ("s" * 120)):
        with pytest.raises(BadSettings, match="MTLS_SOCKET"):
            mtls_listener(on_socket(unusable))
    assert path.read_text() == "precious"


async def test_the_doctor_notices_a_socket_that_others_can_open(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(CheckFailed, match="No such file"):
        await mtls.listener(on_socket(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chmod(path, 0o666)
        with pytest.raises(CheckFailed, match="open to others") as found:
            await mtls.listener(on_socket(path))
    assert found.value.repair.startswith("chmod 660")


@asynccontextmanager
async def answering(folder: Path, *, drops: bool) -> AsyncIterator[str]:
    """A proxy that drops a client's own header or hands it on, and the Evergrant behind it."""

    async def talk(reader: Any, writer: Any) -> None:
        _, _, headers, _ = await read_request(reader)
        alive = drops or "client-cert" not in headers
        body = b'{"status":"ok"}' if alive else b"{}"
        status = b"200 OK" if alive else b"400 Bad Request"
        writer.write(
            b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
        )
        await writer.drain()

    async with listening(talk, tls=loopback_tls(folder).server) as port:
        yield f"https://127.0.0.1:{port}"


async def test_the_doctor_notices_a_proxy_that_hands_on_a_clients_own_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))
    given = files(tmp_path)
    async with answering(tmp_path, drops=False) as url:
        with pytest.raises(CheckFailed, match="hands on a client's own Client-Cert"):
            await mtls.proxy(load_settings(data_dir=tmp_path, mtls_url=url, **given))
    async with answering(tmp_path, drops=True) as url:
        assert "drops" in await mtls.proxy(load_settings(data_dir=tmp_path, mtls_url=url, **given))


async def test_the_doctor_notices_a_port_that_answers_without_a_certificate(tmp_path: Path) -> None:
    given = files(tmp_path)
    async with answering(tmp_path, drops=True) as url:
        given["mtls_port"] = int(url.rpartition(":")[2])
        with pytest.raises(CheckFailed, match="answers without a certificate"):
            await mtls.listener(load_settings(data_dir=tmp_path, **given))
    with pytest.raises(CheckFailed, match="can't be reached"):
        await mtls.listener(load_settings(data_dir=tmp_path, **given))
