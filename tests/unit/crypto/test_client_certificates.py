"""A client certificate's dates, path, uses and names (RFC 5280, RFC 8705 section 2, X.509-SVID)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from evergrant_server.crypto.client_certificates import (
    AppCertificate,
    CertificateRefused,
    authorities_of_pem,
    certificates_of_pem,
    normal_name,
    require_name,
    require_svid,
    verify_path,
)
from tests.fakes.certificates import Authority, OwnCertificate, key_usage, own_certificate

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPIFFE_ID = "spiffe://acme.example/pipeline"
CA = x509.BasicConstraints(ca=True, path_length=None)
AUTHORITY = Authority(now=NOW)


def read(own: OwnCertificate) -> AppCertificate:
    return AppCertificate.of_pem(own.certificate)


def refusal(check: Callable[..., None], *arguments: object) -> str:
    with pytest.raises(CertificateRefused) as refused:
        check(*arguments)
    return str(refused.value)


def test_a_certificate_of_a_plain_private_authority_is_verified() -> None:
    verify_path(read(AUTHORITY.issue()), certificates_of_pem(AUTHORITY.pem), NOW)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (AUTHORITY.issue(hours=(-2, -1)), "expired"),
        (AUTHORITY.issue(hours=(1, 2)), "not valid yet"),
        (AUTHORITY.issue(extensions=(CA,)), "a certificate of an authority"),
        (AUTHORITY.issue(extensions=(key_usage("digital_signature", "key_cert_sign"),)), "key usage"),
        (AUTHORITY.issue(extensions=(key_usage("key_agreement"),)), "key usage"),
        (
            AUTHORITY.issue(extensions=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),)),
            "extended key usage",
        ),
        (Authority(now=NOW).issue(), "no path"),  # an authority of the same name
        (own_certificate(), "not valid yet"),
    ],
)
def test_rfc5280_6_other_certificates_are_refused_with_the_rule(own: OwnCertificate, reason: str) -> None:
    assert reason in refusal(verify_path, read(own), certificates_of_pem(AUTHORITY.pem), NOW)


@pytest.mark.parametrize(
    "authority",
    [
        Authority(now=NOW, extensions=()),
        Authority(now=NOW, extensions=(x509.BasicConstraints(ca=False, path_length=None),)),
        Authority(now=NOW, extensions=(CA, key_usage("digital_signature"))),
        Authority(now=NOW, hours=(-3, -2)),
    ],
)
def test_an_authority_that_may_not_issue_vouches_for_no_one(authority: Authority) -> None:
    assert "no path" in refusal(verify_path, read(authority.issue()), certificates_of_pem(authority.pem), NOW)


def test_a_leaf_is_no_authority() -> None:
    with pytest.raises(ValueError, match="basic constraints"):
        authorities_of_pem(AUTHORITY.pem + AUTHORITY.issue().certificate)
    assert len(authorities_of_pem(AUTHORITY.pem + Authority().pem)) == 2


def test_rfc8705_2_1_2_the_whole_name_must_be_equal() -> None:
    address = x509.SubjectAlternativeName(
        [x509.IPAddress(ip_address("10.0.0.7")), x509.RFC822Name("a@acme.example")]
    )
    named = read(AUTHORITY.issue("pipeline", dns=("A.acme.example", "b.acme.example"), uris=("urn:a",)))
    other = read(AUTHORITY.issue("pipeline", extensions=(address,)))
    for certificate, kind, value in (
        (named, "subject_dn", "CN=pipeline"),
        (named, "san_dns", "a.acme.example"),
        (named, "san_dns", "B.acme.example"),
        (named, "san_uri", "urn:a"),
        (other, "san_ip", "10.0.0.7"),
        (other, "san_email", "a@acme.example"),
    ):
        require_name(certificate, kind, normal_name(kind, value))
    for certificate, kind, value in (
        (named, "subject_dn", "CN=pipeline,O=acme"),
        (named, "san_dns", "acme.example"),
        (named, "san_dns", "pipeline"),  # the common name
        (named, "san_uri", "urn:"),
        (other, "san_ip", "10.0.0.70"),
        (other, "san_uri", "a@acme.example"),
    ):
        assert "the registered one" in refusal(require_name, certificate, kind, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("san_dns", "*.acme.example"), ("san_ip", "10.0.0"), ("subject_dn", ""), ("subject_dn", "pipeline")],
)
def test_a_name_that_identifies_no_one_cannot_be_registered(kind: str, value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the library's texts
        normal_name(kind, value)


def test_an_x509_svid_has_one_uri_and_signs() -> None:
    require_svid(read(AUTHORITY.svid(SPIFFE_ID)), SPIFFE_ID)
    for own, reason in (
        (AUTHORITY.svid(SPIFFE_ID, "spiffe://acme.example/other"), "exactly one URI"),
        (AUTHORITY.svid(SPIFFE_ID, "https://acme.example"), "exactly one URI"),
        (AUTHORITY.issue(dns=("acme.example",)), "exactly one URI"),
        (AUTHORITY.issue(uris=(SPIFFE_ID,)), "digitalSignature"),
        (
            AUTHORITY.issue(uris=(SPIFFE_ID,), extensions=(key_usage("digital_signature", "crl_sign"),)),
            "cRLSign",
        ),
        (AUTHORITY.svid(SPIFFE_ID + "/more"), "not the registered one"),
        (AUTHORITY.svid(SPIFFE_ID.upper()), "not the registered one"),
    ):
        assert reason in refusal(require_svid, read(own), SPIFFE_ID)


def test_pem_with_anything_beside_the_certificate_is_refused() -> None:
    pem = AUTHORITY.issue().certificate
    assert AppCertificate.of_pem(pem.replace("\n", "\r\n")).der == AppCertificate.of_pem(pem).der
    private = AUTHORITY.issue().private
    for text in ("", "x" + pem, pem + "x", pem + pem, pem + private, private, pem.replace("A", "\u0410", 1)):
        with pytest.raises(ValueError):  # noqa: PT011  # the library's texts
            AppCertificate.of_pem(text)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_flipped_bit_gives_no_other_error_and_no_proof() -> None:
    anchors = certificates_of_pem(AUTHORITY.pem)
    der = read(AUTHORITY.svid(SPIFFE_ID)).der
    readable = 0
    for place in range(len(der)):
        changed = bytearray(der)
        changed[place] ^= 0x80
        try:
            certificate = AppCertificate.of_der(bytes(changed))
        except ValueError:
            continue
        readable += 1
        refusal(verify_path, certificate, anchors, NOW)
        assert certificate.valid_until > NOW - timedelta(days=40_000)
    assert readable > 50
