"""`providers try`: what a user may do wrong, each with a message before anything is sent."""

import socket
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.cli import provider_try
from evergrant_server.cli.providers import TrialArguments
from evergrant_server.core.errors import ErrorCode, Failure
from tests.fakes.failures import fails

ACME = """
name: acme
display_name: Acme
auth_modes: [authorization_code]
authorization_endpoint: https://{shop}.acme.example/authorize
token_endpoint: https://acme.example/token
template_params: {shop: {pattern: '^[a-z]+$'}}
"""


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGRANT_TRY_CLIENT_ID", "client-1")
    monkeypatch.setenv("EVERGRANT_TRY_CLIENT_SECRET", "canary")
    (tmp_path / "acme.yaml").write_text(ACME)
    (tmp_path / "taken.yaml").write_text("")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("githb", {}, "similar: github, gitlab"),
        ("slak", {"flow": "device_code"}, "similar: slack"),
        (None, {}, "--definition or --issuer"),
        ("generic", {}, "give --issuer"),
        ("slack", {"flow": "device_code"}, "device code"),
        ("trello", {}, "has the flows oauth1 alone"),
        ("apple", {"param": ("team_id=ABCDE12345", "key_id=ABCDE12345")}, "that a key signs"),
        ("slack", {"out": Path("taken.yaml")}, "taken.yaml exists already"),
        ("slack", {"redirect_uri": "example.org/back"}, "redirect URI is not"),
        ("slack", {"redirect_uri": "http://127.0.0.1:x/"}, "redirect URI is not"),
        ("slack", {"param": ("shop",)}, "is not NAME=VALUE"),
        ("slack", {"param": ("shop=a",)}, "shop is not a parameter"),
        (None, {"definition": Path("absent.yaml")}, "No such file"),
        (None, {"definition": Path("taken.yaml")}, "is empty"),
        (None, {"definition": Path("acme.yaml")}, "shop is missing"),
        ("slack", {"client_secret_file": Path("absent")}, "absent: No such file"),
        ("slack", {"egress_allow": "nowhere"}, "is not host:port"),
    ],
)
def test_a_mistake_is_named(
    name: str | None, arguments: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Failure, match=said):
        provider_try.run(name, TrialArguments(browser=False, **arguments))
    assert "canary" not in "".join(capsys.readouterr())


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with fails(ErrorCode.INVALID_REQUEST) as failed:
            uri = f"http://127.0.0.1:{port}/callback"
            provider_try.run("slack", TrialArguments(browser=False, redirect_uri=uri))
    assert str(port) in failed.value.detail


def test_without_a_terminal_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGRANT_TRY_CLIENT_SECRET")
    with fails(ErrorCode.INVALID_REQUEST) as failed:
        provider_try.run("slack", TrialArguments(browser=False))
    assert "EVERGRANT_TRY_CLIENT_SECRET" in failed.value.detail
