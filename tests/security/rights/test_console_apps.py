"""Apps and their credentials in the console: made, changed, ended, and refused with what was typed."""

import json
import re
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api
from tests.fakes.patience import eventually
from tests.security.console import ConsoleBrowser, at_console
from tests.security.isolation.world import A_CREDENTIAL

PUBLIC = json.dumps(A_CREDENTIAL["parameters"]["jwks"])
THUMBPRINT = ":".join(["AB"] * 32)


async def an_admin(api: Api) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", Action.ADMIN))


async def app_row(api: Api, name: str) -> Any:
    async with api.worker.read() as tx:
        return await tx.access.app_by_name(TENANT, name)


async def test_an_app_is_made_changed_disabled_enabled_and_deleted(api: Api):
    browser = await an_admin(api)
    assert "/console/new/app" in await browser.page("/console/apps")
    url = "https://crm.example/connected"
    answer = await browser.send(
        "/console/new/app", name="sync", return_to=f"{url}\r\n\r\n{url}/2", lease_limit="60"
    )
    assert answer.headers["location"] == "/console/apps/sync?done=made"
    assert "The app is made." in await browser.page(answer.headers["location"])
    made = await app_row(api, "sync")
    assert (made.return_to, made.lease_limit, made.disabled) == ((url, f"{url}/2"), 60, False)

    page = await browser.page("/console/apps/sync/edit")
    assert f"{url}\n{url}/2" in page
    await browser.send("/console/apps/sync/disable")
    answer = await browser.send("/console/apps/sync/edit", return_to=url)
    assert answer.headers["location"] == "/console/apps/sync?done=changed"
    changed = await app_row(api, "sync")
    assert (changed.return_to, changed.lease_limit, changed.disabled) == ((url,), None, True)
    assert (await browser.send("/console/apps/sync/enable")).headers["location"].endswith("?done=enabled")
    assert not (await app_row(api, "sync")).disabled

    answer = await browser.send("/console/apps/sync/delete", confirm="sync")
    assert answer.headers["location"] == "/console/apps?done=deleted"
    assert await app_row(api, "sync") is None
    assert "The app is deleted." in await browser.page(answer.headers["location"])
    acts = [record.action for record in await api.records(AuditAction.APP_PUT, AuditAction.APP_DELETED)]
    assert acts == [AuditAction.APP_PUT] * 4 + [AuditAction.APP_DELETED]


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"name": "new", "return_to": "http://crm.example/x"}, "return_to"),
        ({"name": "new", "lease_limit": "-1"}, "lease_limit"),
        ({"name": "new", "lease_limit": "0"}, "lease_limit"),
        ({"name": "boss"}, "name"),
        ({"name": ""}, "name"),
    ],
)
async def test_a_refused_form_comes_back_filled_with_the_problem_at_its_field(
    api: Api, typed: dict[str, str], field: str
):
    browser = await an_admin(api)
    answer = await browser.send("/console/new/app", **{"return_to": "https://kept.example/", **typed})
    assert answer.status_code == (409 if typed["name"] == "boss" else 400)
    assert f'id="{field}-problem"' in answer.text
    shown = re.search(rf'id="{field}"[^>]*aria-invalid="true"[^>]*autofocus', answer.text)
    assert shown is not None, "the field has the focus, and says that it is wrong"
    assert typed.get("return_to", "https://kept.example/") in answer.text
    assert await app_row(api, "new") is None


async def test_what_ends_with_an_app_is_counted_and_only_its_own_name_ends_it(api: Api):
    integration = await api.integration()
    for subject in ("ann", "bob"):
        await api.active(integration, subject=subject, lifetime=None)
    key = await api.app_with("sync", Action.TOKEN)
    for subject in ("ann", "ann", "bob"):
        assert (await api.lease(key, subject=subject)).status_code == 200
    browser = await an_admin(api)
    uses = "<li>2 connections that it"  # noted a moment after the leases
    page = await eventually(lambda: browser.page("/console/apps/sync/delete"), lambda page: uses in page)
    for number, words in (
        (1, "live API key"),
        (1, "permit"),
        (2, "connections that it"),
        (3, "leases and calls"),
    ):
        assert f"<li>{number} {words}" in page, words
    page = await browser.page("/console/apps/sync/disable")
    assert "leased 2 connections, with 3 leases and calls" in page
    assert (await browser.send("/console/apps/sync/delete", confirm="boss")).status_code == 400
    assert await app_row(api, "sync") is not None
    for act in ("delete", "disable"):
        refused = await browser.send(f"/console/apps/boss/{act}", confirm="boss")
        assert (refused.status_code, "an app can" in refused.text.lower()) == (400, True), act


@pytest.mark.parametrize(
    ("method", "parameters", "kept"),
    [
        ("private_key_jwt", {"jwks": PUBLIC}, {}),
        ("self_signed_tls_client_auth", {"thumbprint": THUMBPRINT}, {}),
        (
            "workload_identity",
            {"issuer": "ci", "claims": "sub = repo:acme/app:ref\r\nrepository=acme/app"},
            {"claims": {"sub": "repo:acme/app:ref", "repository": "acme/app"}},
        ),
        ("x509_svid", {"spiffe_id": "spiffe://acme.example/etl", "issuer": "mesh"}, {"issuer": "mesh"}),
    ],
)
async def test_a_credential_of_each_method_is_registered_and_removed(
    api: Api, method: str, parameters: dict[str, str], kept: dict[str, Any]
):
    admin = await api.app_with("setup", Action.ADMIN)
    for name, body in (
        ("ci", {"kind": "oidc", "issuer": "https://ci.example"}),
        (
            "mesh",
            {"kind": "spiffe", "issuer": "spiffe://acme.example", "jwks_uri": "https://acme.example/bundle"},
        ),
    ):
        assert (await api.call("PUT", f"/v1/issuers/{name}", admin, json=body)).status_code == 201
    await api.app_with("sync")
    browser = await an_admin(api)
    assert f"new/credential?method={method}" in await browser.page("/console/apps/sync/new/credential")
    form = await browser.page(f"/console/apps/sync/new/credential?method={method}")
    fields = {f"parameters.{name}": text for name, text in parameters.items()}
    assert set(fields) <= set(re.findall(r'name="(parameters\.\w+)"', form))
    path = "/console/apps/sync/new/credential"
    answer = await browser.send(path, method=method, name="first", **fields)
    assert answer.headers["location"] == "/console/apps/sync?done=credential-made", answer.text
    made = (await api.get("/v1/apps/sync/credentials/first", admin)).json()
    assert made["method"] == method
    assert {name: made["parameters"][name] for name in kept} == kept
    again = await browser.send(path, method=method, name="first", **fields)
    assert (again.status_code, "a credential of this name" in again.text) == (409, True)

    remove = "/console/apps/sync/credentials/first/remove"
    assert remove in await browser.page("/console/apps/sync")
    answer = await browser.send(remove, confirm="first")
    assert answer.headers["location"] == "/console/apps/sync?done=credential-removed"
    assert (await api.get("/v1/apps/sync/credentials", admin)).json()["items"] == []


async def test_certificates_of_an_authority_are_registered_by_one_name(api: Api):
    await api.app_with("sync")
    browser = await an_admin(api)
    fields = {"parameters.ca": "no certificate", "parameters.san_dns": "etl.acme.example"}
    path = "/console/apps/sync/new/credential"
    answer = await browser.send(path, method="tls_client_auth", name="cert", **fields)
    assert (answer.status_code, 'id="parameters.ca-problem"' in answer.text) == (400, True)
    assert "etl.acme.example" in answer.text


async def test_a_private_key_that_was_pasted_by_mistake_is_refused_and_not_sent_back(api: Api):
    await api.app_with("sync")
    browser = await an_admin(api)
    secret = "c2VjcmV0LW51bWJlcg"
    jwks = json.dumps({"keys": [{**A_CREDENTIAL["parameters"]["jwks"]["keys"][0], "d": secret}]})
    for path, fields in (
        ("/console/apps/sync/new/credential", {"method": "private_key_jwt", "parameters.jwks": jwks}),
        ("/console/new/client", {"redirect_uris": "https://a.example/cb", "jwks": jwks}),
    ):
        answer = await browser.send(path, name="first", **fields)
        assert (answer.status_code, secret in answer.text) == (400, False), path
        assert 'jwks-problem"' in answer.text


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"method": "private_key_jwt", "parameters.jwks": "[]"}, "parameters.jwks"),
        ({"method": "private_key_jwt", "parameters.jwks": PUBLIC, "name": "A"}, "name"),
        ({"method": "workload_identity", "parameters.claims": "sub"}, "parameters.claims"),
        ({"method": "workload_identity", "parameters.claims": "a=1\na=2"}, "parameters.claims"),
        (
            {"method": "workload_identity", "parameters.issuer": "none", "parameters.claims": "sub=a"},
            "parameters.issuer",
        ),
        ({"method": "self_signed_tls_client_auth", "parameters.thumbprint": "x"}, "parameters.thumbprint"),
        ({"method": "x509_svid", "parameters.spiffe_id": "https://a"}, "parameters.spiffe_id"),
    ],
)
async def test_a_credential_that_is_wrong_is_refused_at_its_field(
    api: Api, fields: dict[str, str], problem: str
):
    await api.app_with("sync")
    browser = await an_admin(api)
    answer = await browser.send("/console/apps/sync/new/credential", **{"name": "first", **fields})
    assert answer.status_code == 400
    assert f'id="{problem}-problem"' in answer.text
    assert (
        await browser.send("/console/apps/sync/new/credential", method="api_key", name="x")
    ).status_code == 400
    assert await api.records(AuditAction.CREDENTIAL_PUT) == []
