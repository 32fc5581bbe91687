"""A drift: catalogues of each known shape are read, and only facts that differ are said."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergrant_server.core.errors import ErrorCode
from providers.definition.registry import CATALOG
from tests.conformance.providers.drift import __main__ as drift_script
from tests.conformance.providers.drift.comparison import CatalogueDrift, compare, same_url
from tests.conformance.providers.drift.other_catalogues import read_catalogues
from tests.fakes.failures import fails
from tests.unit.providers.samples import spec_like

ACME = {
    "name": "acme",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://{shop}.acme.example/authorize",
    "token_endpoint": "https://acme.example/token",
    "scope_separator": ",",
    "template_params": {"shop": {"pattern": "^[a-z]+$"}},
}
SHOP = "https://${connectionConfig.shop}.acme.example/authorize?v=1"
NANGO = {"auth_mode": "OAUTH2", "authorization_url": SHOP, "token_url": "https://acme.example/token/"}


def drift_of(folder: Path, **files: Any) -> CatalogueDrift:
    for name, content in files.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / f"{name}.yaml").write_text(text)
    spec = spec_like(**{"revocation_endpoint": None, **ACME})
    return compare({"acme": spec}, {"acme": ACME}, read_catalogues(folder))


def fields(drift: CatalogueDrift) -> dict[str, tuple[str, str]]:
    return {it.field: (it.ours, it.theirs) for it in drift.differences}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, {}),
        ({"auth_mode": "API_KEY", "token_url": "https://else.example"}, {}),
        ({"token_url": {"OAUTH2": "https://else.example"}}, {}),
        ({"refresh_url": "https://acme.example/token"}, {}),
        ({"disable_pkce": True}, {"pkce": ("on", "off")}),
        ({"scope_separator": " "}, {"scope_separator": (",", "' '")}),
        ({"token_request_auth_method": "custom"}, {}),
        ({"token_url": "https://else.example/${a} || https://acme.example/token"}, {}),
        ({"token_url": "https://new.acme.example/token"}, {"token_endpoint": ("acme.example", "new.acme")}),
        ({"refresh_url": "https://acme.example/r\x1b[2J"}, {"refresh_endpoint": ("(absent)", "r?[2J")}),
    ],
)
def test_an_entry_of_nango(entry: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    drift = drift_of(tmp_path, providers={"acme": {**NANGO, **entry}, "other": NANGO})
    assert drift.only_theirs == ["other"]
    found = fields(drift)
    assert found.keys() == expected.keys()
    assert all(part in text for name in found for text, part in zip(found[name], expected[name], strict=True))


def test_an_alias_of_nango_has_the_facts_of_the_other(tmp_path: Path) -> None:
    other = {**NANGO, "token_url": "https://new.example/token"}
    found = fields(drift_of(tmp_path, providers={"base": other, "acme": {"alias": "base"}}))
    assert list(found) == ["token_endpoint"]


@pytest.mark.parametrize(
    "content",
    [
        {"Acme CRM": {"authorizeUrl": "https://x.acme.example/authorize", "tokenUrl": "https://n.example/t"}},
        {"providers": [{"name": "acme", "token_endpoint": "https://n.example/t", "pkce": "S256"}]},
        [{"key": "ACME", "accessTokenUrl": "https://n.example/t", "authentication": "header"}],
    ],
)
def test_a_plain_list_in_any_spelling(content: Any, tmp_path: Path) -> None:
    assert list(fields(drift_of(tmp_path, plain=content))) == ["token_endpoint"]


def test_another_release_of_our_own_is_compared_field_by_field(tmp_path: Path) -> None:
    older = {**ACME, "pkce": "off", "sources": {"agreeing": {}}, "template_params": {}, "unknown_now": 1}
    drift = drift_of(tmp_path, acme=older, gone={**ACME, "name": "gone"})
    assert fields(drift).keys() == {"pkce", "template_params", "template_params.shop.pattern", "unknown_now"}
    assert (drift.only_theirs, drift.compared) == (["gone"], 1)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://a.example/x", "http://A.example/x/?y=1", True),
        ("https://{h}/oauth/token", "${connectionConfig.instance}/oauth/token", True),
        ("https://{r}.a.example/x", "https://eu.a.example/x", True),
        ("https://{r}.a.example/x", "https://eu.b.example/x", False),
        ("https://a.example/x", "https://a.example/y", False),
    ],
)
def test_templates_of_one_url(first: str, second: str, same: bool) -> None:
    assert same_url(first, second) is same_url(second, first) is same


def test_unknown_and_broken_files_are_named_and_skipped(tmp_path: Path) -> None:
    for name, content in (
        ("list", "[1, 2]"),
        ("broken", "a: ["),
        ("text", "words"),
        ("empty", ""),
        ("cycle", "a: &a {b: *a}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with fails(
        ErrorCode.INVALID_REQUEST, "has no catalogue. binary.json: is not UTF-8; broken.yaml: is neither"
    ):
        read_catalogues(tmp_path)
    drift_of(tmp_path, providers={"acme": NANGO})
    assert [file for file, _ in read_catalogues(tmp_path).skipped] == [
        *("binary.json", "broken.yaml", "cycle.yaml", "empty.yaml", "list.yaml", "text.yaml")
    ]
    with fails(ErrorCode.INVALID_REQUEST, "doesn't exist"):
        read_catalogues(tmp_path / "absent")


def test_the_command_says_what_is_new_since_an_earlier_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, before, ours = tmp_path / "now.yaml", tmp_path / "before.yaml", tmp_path / "github.yaml"
    slack = {"auth_mode": "OAUTH2", "token_url": "https://old.example/token"}
    before.write_text(yaml.safe_dump({"slack": slack}))
    now.write_text(
        yaml.safe_dump({"slack": slack, "github": {**slack, "token_url": "https://new.example/t"}})
    )
    assert drift_script.run(now, before, "json") is False
    found = json.loads(capsys.readouterr().out)
    assert [(it["provider"], it["field"], it["source"]) for it in found["differences"]] == [
        ("github", "token_endpoint", "now.yaml")
    ]
    ours.write_text((CATALOG / "github.yaml").read_text())
    assert drift_script.run(ours, None, "text") is True
    assert capsys.readouterr().out.startswith("1 entries compared: 0 differences at 0 providers")
