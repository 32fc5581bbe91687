"""Registered certificates: names, thumbprints, SPIFFE ids and bundles that are accepted, and all others."""

from typing import Any

from tests.fakes.api import Api
from tests.fakes.certificates import Authority

PATH = "/v1/apps/sync/credentials/main"
AUTHORITY = Authority().pem
LEAF = Authority().issue()
HEX = "AB" * 32
SPIFFE_ID = "spiffe://acme.example/sync"

Parameters = dict[str, Any]
GOOD: list[tuple[str, Parameters, Parameters]] = [
    ("tls_client_auth", {"ca": AUTHORITY, "san_dns": "Sync.acme.example"}, {"san_dns": "sync.acme.example"}),
    ("tls_client_auth", {"ca": AUTHORITY, "san_ip": "2001:DB8::0"}, {"san_ip": "2001:db8::"}),
    ("tls_client_auth", {"ca": AUTHORITY, "subject_dn": "CN=sync,O=Acme"}, {"subject_dn": "CN=sync,O=Acme"}),
    ("tls_client_auth", {"ca": AUTHORITY.replace("\n", " "), "san_email": "a@acme.example"}, {}),
    (
        "self_signed_tls_client_auth",
        {"thumbprint": HEX},
        {"thumbprint": "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s"},
    ),
    ("self_signed_tls_client_auth", {"thumbprint": ":".join(["ab"] * 32)}, {}),
    ("self_signed_tls_client_auth", {"thumbprint": "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s"}, {}),
    ("x509_svid", {"spiffe_id": SPIFFE_ID, "bundle": AUTHORITY + Authority().pem}, {"spiffe_id": SPIFFE_ID}),
]
BAD: dict[str, tuple[str, Parameters]] = {
    "no name": ("tls_client_auth", {"ca": AUTHORITY}),
    "two names": ("tls_client_auth", {"ca": AUTHORITY, "san_dns": "a.example", "san_uri": "urn:a"}),
    "an empty name": ("tls_client_auth", {"ca": AUTHORITY, "san_dns": ""}),
    "a wildcard": ("tls_client_auth", {"ca": AUTHORITY, "san_dns": "*.acme.example"}),
    "no address": ("tls_client_auth", {"ca": AUTHORITY, "san_ip": "10.0.0.0/8"}),
    "no subject": ("tls_client_auth", {"ca": AUTHORITY, "subject_dn": "sync"}),
    "half a character": ("tls_client_auth", {"ca": AUTHORITY, "san_uri": "urn:\ud800"}),
    "no authority": ("tls_client_auth", {"san_dns": "a.example"}),
    "two authorities": ("tls_client_auth", {"ca": AUTHORITY * 2, "san_dns": "a.example"}),
    "a leaf as authority": ("tls_client_auth", {"ca": LEAF.certificate, "san_dns": "a.example"}),
    "a private key": ("tls_client_auth", {"ca": AUTHORITY + LEAF.private, "san_dns": "a.example"}),
    "no PEM": ("tls_client_auth", {"ca": "é\ud800", "san_dns": "a.example"}),
    "a name too many": ("tls_client_auth", {"ca": AUTHORITY, "san_dns": "a.example", "issuer": "x"}),
    "SHA-1": ("self_signed_tls_client_auth", {"thumbprint": "AB" * 20}),
    "no hash": ("self_signed_tls_client_auth", {"thumbprint": "q" * 43}),
    "a certificate": ("self_signed_tls_client_auth", {"thumbprint": LEAF.certificate}),
    "no scheme": ("x509_svid", {"spiffe_id": "acme.example/sync", "bundle": AUTHORITY}),
    "a trust domain": ("x509_svid", {"spiffe_id": "spiffe://acme.example", "bundle": AUTHORITY}),
    "a pattern": ("x509_svid", {"spiffe_id": "spiffe://acme.example/*", "bundle": AUTHORITY}),
    "a relative path": ("x509_svid", {"spiffe_id": "spiffe://acme.example/a/../b", "bundle": AUTHORITY}),
    "a slash at the end": ("x509_svid", {"spiffe_id": SPIFFE_ID + "/", "bundle": AUTHORITY}),
    "a port": ("x509_svid", {"spiffe_id": "spiffe://acme.example:1/sync", "bundle": AUTHORITY}),
    "no bundle": ("x509_svid", {"spiffe_id": SPIFFE_ID, "bundle": ""}),
    "a bundle and an issuer": ("x509_svid", {"spiffe_id": SPIFFE_ID, "bundle": AUTHORITY, "issuer": "acme"}),
    "neither": ("x509_svid", {"spiffe_id": SPIFFE_ID}),
    "an unknown issuer": ("x509_svid", {"spiffe_id": SPIFFE_ID, "issuer": "nowhere"}),
    "another trust domain": ("x509_svid", {"spiffe_id": "spiffe://acme.example.org/a", "issuer": "acme"}),
    "an issuer of tokens": ("x509_svid", {"spiffe_id": "https://issuer.example/a", "issuer": "oidc"}),
    "a large bundle": ("x509_svid", {"spiffe_id": SPIFFE_ID, "bundle": AUTHORITY * 21}),
}


async def test_what_is_registered_is_kept_in_its_normal_form(api: Api, admin: str) -> None:
    await api.app_with("sync")
    for method, parameters, kept in GOOD:
        answer = await api.call("PUT", PATH, admin, json={"method": method, "parameters": parameters})
        assert answer.status_code in (200, 201), answer.text
        found = (await api.get(PATH, admin)).json()
        assert found["method"] == method
        assert {**found["parameters"], **kept} == found["parameters"]


async def test_a_credential_that_would_prove_no_one_app_is_refused_and_not_quoted(
    api: Api, admin: str
) -> None:
    await api.app_with("sync")
    domain = {"kind": "spiffe", "issuer": "spiffe://acme.example", "jwks_uri": "https://spire.example/bundle"}
    await api.call("PUT", "/v1/issuers/acme", admin, json=domain)
    oidc = {"kind": "oidc", "issuer": "https://issuer.example"}
    await api.call("PUT", "/v1/issuers/oidc", admin, json=oidc)
    for name, (method, parameters) in BAD.items():
        answer = await api.call("PUT", PATH, admin, json={"method": method, "parameters": parameters})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), name
        assert LEAF.private.splitlines()[1] not in answer.text
    assert (await api.get(PATH, admin)).status_code == 404


async def test_rfc8705_5_the_metadata_name_the_proxy_only_where_there_is_one(api: Api) -> None:
    path = "/.well-known/oauth-authorization-server"
    without = (await api.get(path)).json()
    assert not {"mtls_endpoint_aliases", "tls_client_certificate_bound_access_tokens"} & set(without)
    api.parts.settings.mtls_url = "https://mtls.evergrant.test"
    found = (await api.get(path)).json()
    assert found["mtls_endpoint_aliases"] == {"token_endpoint": "https://mtls.evergrant.test/oauth/token"}
    assert found["tls_client_certificate_bound_access_tokens"] is True
    added = {"tls_client_auth", "self_signed_tls_client_auth", "spiffe_x509"}
    assert set(found["token_endpoint_auth_methods_supported"]) == added | set(
        without["token_endpoint_auth_methods_supported"]
    )
    assert found["issuer"] == without["issuer"] == api.parts.settings.public_url
