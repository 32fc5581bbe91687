"""The certificate that a client presents: files that can't be used, settings, and the commands for admins."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from evergrant import BadRequest, Evergrant
from evergrant.api.models import Credential
from evergrant.identity import Certificate
from evergrant.identity.certificate import CertificateTls

from evergrant_server.crypto.client_certificates import AppCertificate
from tests.fakes.certificates import Authority, OwnCertificate
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example

APP = "app_0123456789abcdefghjkmn"
AUTHORITY = Authority()


def written(folder: Path, own: OwnCertificate) -> Path:
    file = folder / "app.pem"
    file.write_text(own.certificate + own.private)
    return file


def encrypted(own: OwnCertificate) -> str:
    key = serialization.load_pem_private_key(own.private.encode(), None)
    scheme = serialization.BestAvailableEncryption(b"hush-hush")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, scheme).decode()


def test_files_that_can_not_be_used_are_refused_at_once_and_not_quoted(tmp_path: Path) -> None:
    own = AUTHORITY.issue()
    bad = {
        "no key": own.certificate,
        "another key": own.certificate + AUTHORITY.issue().private,
        "a key with a password": own.certificate + encrypted(own),
        "no certificate": own.private,
        "nothing": "",
        "text": "canary",
    }
    for name, text in bad.items():
        file = tmp_path / "app.pem"
        file.write_text(text)
        with pytest.raises(BadRequest) as refused:
            Evergrant("https://mtls.example", identity=Certificate(APP, file))
        assert refused.value.code == "certificate_unusable", name
        assert own.private.splitlines()[1] not in str(refused.value)
    with pytest.raises(BadRequest, match="No such file"):
        Evergrant("https://mtls.example", identity=Certificate(APP, tmp_path / "none.pem"))


def test_half_of_a_new_pair_leaves_the_certificate_in_use(tmp_path: Path) -> None:
    file = written(tmp_path, AUTHORITY.issue())
    tls = CertificateTls(Certificate(APP, file), ssl.create_default_context())
    assert tls.renew() is False
    file.write_text(AUTHORITY.issue().certificate + AUTHORITY.issue().private)
    with pytest.raises(BadRequest):
        tls.renew()
    written(tmp_path, AUTHORITY.issue())
    assert tls.renew() is True


def test_settings_name_the_app_and_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = AUTHORITY.issue()
    (tmp_path / "app.key").write_text(own.private)
    (tmp_path / "only.pem").write_text(own.certificate)
    monkeypatch.setenv("EVERGRANT_APP_ID", APP)
    monkeypatch.setenv("EVERGRANT_CERTIFICATE_FILE", str(tmp_path / "only.pem"))
    with pytest.raises(BadRequest, match="certificate"):
        Evergrant("https://mtls.example")
    monkeypatch.setenv("EVERGRANT_CERTIFICATE_KEY_FILE", str(tmp_path / "app.key"))
    with Evergrant("https://mtls.example") as client:
        identity = client._server.identity
        assert identity is not None
        assert identity("https://public.example") == {"client_id": APP}


@pytest.mark.parametrize(
    ("arguments", "method", "parameters"),
    [
        (
            ("put-certificate", "etl", "main", "--ca", "ca.pem", "--dns", "etl.acme.example"),
            "tls_client_auth",
            {"ca": AUTHORITY.pem, "san_dns": "etl.acme.example"},
        ),
        (("pin-certificate", "etl", "main", "own.pem"), "self_signed_tls_client_auth", {}),
        (
            ("put-svid", "etl", "main", "spiffe://acme.example/etl", "--bundle", "ca.pem"),
            "x509_svid",
            {"spiffe_id": "spiffe://acme.example/etl", "bundle": AUTHORITY.pem},
        ),
        (
            ("put-svid", "etl", "main", "spiffe://acme.example/etl", "--issuer", "acme"),
            "x509_svid",
            {"spiffe_id": "spiffe://acme.example/etl", "issuer": "acme"},
        ),
    ],
)
def test_the_command_registers_a_certificate(
    command: Command,
    evergrant: ScriptedEvergrant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    method: str,
    parameters: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = AUTHORITY.issue()
    Path("ca.pem").write_text(AUTHORITY.pem)
    Path("own.pem").write_text(own.certificate)
    registered = example(Credential, name="main", method=method, parameters={})
    evergrant.script("PUT /v1/apps/etl/credentials/main", ScriptedResponse(200, registered))
    assert command("apps", "credentials", *arguments).status == 0
    (sent,) = evergrant.requests
    wanted = parameters or {"thumbprint": AppCertificate.of_pem(own.certificate).thumbprint}
    assert sent.body == {"method": method, "parameters": wanted}


def test_the_command_pins_no_key_and_no_text(command: Command, tmp_path: Path) -> None:
    for text in (AUTHORITY.issue().private, AUTHORITY.pem + AUTHORITY.pem, "canary", ""):
        (tmp_path / "bad.pem").write_text(text)
        ended = command("apps", "credentials", "pin-certificate", "etl", "main", str(tmp_path / "bad.pem"))
        assert ended.status == 1
        assert ended.err.startswith("evergrant: certificate_unusable: ")
