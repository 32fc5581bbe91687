"""A misread reply becomes a vector without secrets, which `providers try --vector` reads until they agree."""

from pathlib import Path

import pytest

from evergrant_server.cli import misreading
from evergrant_server.cli.providers import TrialArguments, explain_reply
from evergrant_server.core.errors import Failure
from providers.definition.parsing import parse_yaml

SECRET = "1000.8cb99d4b22be6e6fcb7b1a5cd2e7f3a1.9f31a8e2"
BODY = f'{{"error": "token_gone", "error_description": "The token {SECRET} of ann@acme.example is gone"}}'
DEFINITION = """
name: acme
display_name: Acme
auth_modes: [authorization_code]
authorization_endpoint: https://acme.example/authorize
token_endpoint: https://acme.example/token
"""
RULE = "terminal_error_codes: [token_gone]\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reply").write_text(BODY)
    return tmp_path


def explain(**more: object) -> None:
    explain_reply("generic", status=400, body=Path("reply"), **more)  # type: ignore[arg-type]  # as typed there


def agrees(definition: str, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Whether the definition reads the vector as it says, and what is printed."""
    Path("acme.yaml").write_text(definition)
    arguments = TrialArguments(vector=Path("generic.observed.yaml"), definition=Path("acme.yaml"))
    capsys.readouterr()
    same = misreading.compare(None, arguments, Path("generic.observed.yaml"))
    return same, capsys.readouterr().out


def test_a_reply_becomes_a_vector_without_secrets_that_the_trial_reads(capsys: pytest.CaptureFixture[str]):
    explain()
    assert not Path("generic.observed.yaml").exists()
    explain(should_be="dead_token", source="https://acme.example/errors")
    explain(should_be="dead_token", source="https://acme.example/errors")  # once is enough
    explain(should_be="passing", at="exchange")
    assert SECRET not in capsys.readouterr().out
    text = Path("generic.observed.yaml").read_text()
    assert SECRET not in text
    assert "ann@" not in text
    first, second = parse_yaml(text)["refusals"]
    assert (first["of"], first["code"], first["source"]) == (
        "dead_token",
        "grant_rejected",
        "https://acme.example/errors",
    )
    assert first["reply"]["json"]["error"] == "token_gone"
    assert (second["at"], second["code"], second["source"]) == ("exchange", "provider_error", "unverified")


def test_the_definition_is_mended_until_it_agrees(capsys: pytest.CaptureFixture[str]):
    explain(should_be="dead_token")
    same, printed = agrees(DEFINITION, capsys)
    assert not same
    assert "read as provider_error" in printed
    assert "it is grant_rejected" in printed
    same, printed = agrees(DEFINITION + RULE, capsys)
    assert same
    assert "differs     nothing" in printed


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (f"the token {SECRET} is gone", "the token redacted is gone"),
        (f"<html><p>gone: {SECRET}</p></html>", "<html><p>gone: redacted</p></html>"),
        ("", ""),
    ],
)
def test_of_a_text_or_a_page_the_words_stay(folder: Path, body: str, shown: str):
    (folder / "reply").write_text(body)
    explain(should_be="dead_token")
    (refusal,) = parse_yaml(Path("generic.observed.yaml").read_text())["refusals"]
    assert refusal["reply"]["text"] == shown


def test_a_body_that_isnt_there_is_named():
    with pytest.raises(Failure, match="absent: No such file"):
        explain_reply("generic", status=400, body=Path("absent"))


@pytest.mark.parametrize("text", ["[]", "scopes: 7", "refusals: 7", "{", "x: 1"])
def test_a_file_that_is_no_vector_is_named_and_left_alone(folder: Path, text: str):
    file = folder / "generic.observed.yaml"
    file.write_text(text)
    with pytest.raises(Failure, match=r"vector|generic\.observed\.yaml"):
        explain(should_be="dead_token")
    assert file.read_text() == text
