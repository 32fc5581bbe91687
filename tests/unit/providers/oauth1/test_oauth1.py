"""OAuth 1.0a: the RFC's signatures, verification by oauthlib, replies and callbacks."""

import base64
from typing import Any
from urllib.parse import unquote, urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1
from hypothesis import given, settings
from hypothesis import strategies as st
from oauthlib.oauth1.rfc5849 import signature as theirs
from oauthlib.oauth1.rfc5849.utils import parse_authorization_header

from evergrant_server.core.connections.credentials import OAUTH1, ClientKey, TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.definition.schema_request import SignatureMethod
from providers.oauth1.flow import (
    read_oauth1_callback,
    read_temporary_credentials,
    read_token_credentials,
    temporary_credentials_request,
    temporary_token_in,
)
from providers.oauth1.signing import oauth1_authorization_header, oauth1_signature, require_signable
from providers.requests.request_format import OAuthClient, ProviderAccess
from providers.responses.raw_reply import RawReply
from tests.fakes.providers.rsa_keys import rsa_key
from tests.unit.providers.samples import NOW, fails, reply_of, spec_like

RSA = rsa_key()
CLIENT = OAuthClient("dpf43f3p2l4k3l03", Secret("kd94hf93k423kf44"), "none")
SIGNS = OAuthClient(
    "key/1", Secret("s&cret%"), "none", ClientKey(private=Secret(RSA.as_pem(private=True).decode()))
)
HMAC = SignatureMethod.HMAC_SHA1
PHOTOS = "photos.example.net"


def pair(token: str, secret: str) -> TokenPair:
    return TokenPair(Secret(token), Secret(secret))


@pytest.mark.parametrize(
    ("method", "url", "said", "tokens", "signed"),
    [
        (
            "POST",
            f"https://{PHOTOS}/token",
            {
                "oauth_token": "hh5s93j4hdidpola",
                "oauth_timestamp": "137131201",
                "oauth_nonce": "walatlh",
                "oauth_verifier": "hfdp7dh39dks9884",
            },
            pair("hh5s93j4hdidpola", "hdhd0244k9j7ao03"),
            "gKgrFCywp7rO0OXSjdot/IHF7IU=",
        ),
        (
            "GET",
            f"http://{PHOTOS}/photos?file=vacation.jpg&size=original",
            {"oauth_token": "nnch734d00sl2jdk", "oauth_timestamp": "137131202", "oauth_nonce": "chapoH"},
            pair("nnch734d00sl2jdk", "pfkkdhi9sl3r4s00"),
            "MdpQcU8iPSUjWoN/UDMsK2sui9I=",
        ),
    ],
)
def test_rfc5849_1_2_example_signatures(
    method: str, url: str, said: dict[str, str], tokens: TokenPair, signed: str
):
    standard = {"oauth_consumer_key": "dpf43f3p2l4k3l03", "oauth_signature_method": "HMAC-SHA1"}
    assert oauth1_signature(CLIENT, HMAC, method, url, [*(standard | said).items()], pair=tokens) == signed


texts = st.text(min_size=1, max_size=12)
names = texts.filter(lambda text: not text.startswith("oauth_"))
pairs = st.lists(st.tuples(names, st.text(max_size=12)), max_size=4)


@settings(max_examples=25)  # reading a key of RSA is slow, and the base string is the same
@given(query=pairs, form=pairs, token=texts, secret=st.text(max_size=12))
@pytest.mark.parametrize("how", [HMAC, SignatureMethod.HMAC_SHA256, SignatureMethod.RSA_SHA1])
def test_rfc5849_3_4_2_and_3_4_3_oauthlib_verifies_signatures(
    how: SignatureMethod, query: list[Any], form: list[Any], token: str, secret: str
):
    url = f"https://API.example:443/1/statuses?{urlencode(query)}"
    tokens = pair(token, secret)
    header = oauth1_authorization_header(
        SIGNS, how, "POST", url, at=NOW, pair=tokens, form=form, realm="Photos"
    )
    said = {name: unquote(value) for name, value in parse_authorization_header(header)}
    assert (said["realm"], said["oauth_token"], said["oauth_timestamp"]) == ("Photos", token, "1777636800")
    asked = _Asked("POST", url, header, form, said["oauth_signature"])
    match how:
        case SignatureMethod.HMAC_SHA1:
            assert theirs.verify_hmac_sha1(asked, "s&cret%", secret)
        case SignatureMethod.HMAC_SHA256:
            assert theirs.verify_hmac_sha256(asked, "s&cret%", secret)
        case _:  # oauthlib's own needs PyJWT
            base = theirs.signature_base_string("POST", asked.uri, theirs.normalize_parameters(asked.params))
            signed = base64.b64decode(asked.signature)
            RSA.public_key.verify(signed, base.encode(), PKCS1v15(), SHA1())  # raises InvalidSignature


class _Asked:
    """A request as oauthlib's verifiers want it."""

    def __init__(self, method: str, url: str, header: str, form: list[Any], signed: str) -> None:
        self.http_method, self.signature = method, signed
        self.uri = theirs.base_string_uri(url)
        found = theirs.collect_parameters(
            uri_query=url.partition("?")[2], headers={"Authorization": header}, body=urlencode(form)
        )
        self.params = [(name, value) for name, value in found if name != "oauth_signature"]


def test_missing_secret_or_key_is_client_rejected():
    for how in SignatureMethod:
        with fails(ErrorCode.CLIENT_REJECTED):
            oauth1_authorization_header(
                OAuthClient("x", None, "none"), how, "GET", "https://api.example/", at=NOW
            )


def test_plaintext_signature_not_handed_out():
    header = oauth1_authorization_header(
        CLIENT, SignatureMethod.PLAINTEXT, "GET", "https://a.example/", at=NOW
    )
    assert 'oauth_signature="kd94hf93k423kf44%26"' in header
    for how in SignatureMethod:
        if how is not SignatureMethod.PLAINTEXT:
            require_signable(how)
    with pytest.raises(Failure):
        require_signable(SignatureMethod.PLAINTEXT)


SPEC = spec_like(
    auth_modes=["oauth1"],
    request_token_endpoint="https://acme.example/temporary",
    response={
        "metadata_paths": ["user_id"],
        "expires_at_path": "edam_expires",
        "expires_at_format": "epoch_ms",
    },
)


TEMPORARY = b"oauth_token=t1&oauth_token_secret=s1&oauth_callback_confirmed=true"


def test_rfc5849_2_1_temporary_credentials():
    read = read_temporary_credentials(SPEC, reply_of(TEMPORARY))
    assert (read.token.reveal(), read.secret.reveal()) == ("t1", "s1")
    acme = ProviderAccess(SPEC, Endpoints(token_endpoint="unused"), CLIENT)
    asked = temporary_credentials_request(
        acme, "https://acme.example/temporary", "https://us.example/cb", NOW
    )
    assert "us.example" not in repr(asked)
    assert 'oauth_callback="https%3A%2F%2Fus.example%2Fcb"' in asked.headers["Authorization"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply_of(TEMPORARY.replace(b"true", b"false")), ErrorCode.REPLY_UNREADABLE),
        (reply_of(b"oauth_token=t1&oauth_token_secret=s1"), ErrorCode.REPLY_UNREADABLE),
        (reply_of(TEMPORARY.replace(b"t1", b"")), ErrorCode.REPLY_UNREADABLE),
        (reply_of(b"oauth_token=t1&oauth_callback_confirmed=true"), ErrorCode.REPLY_UNREADABLE),
        (reply_of(b"<html>"), ErrorCode.REPLY_UNREADABLE),
        (reply_of(b"Invalid signature", 401), ErrorCode.CLIENT_REJECTED),
        (reply_of(b"", 503), ErrorCode.PROVIDER_ERROR),
        (reply_of(b"", 429), ErrorCode.PROVIDER_RATE_LIMITED),
    ],
)
def test_rfc5849_2_1_invalid_temporary_credentials(answer: RawReply, code: ErrorCode):
    with fails(code):
        read_temporary_credentials(SPEC, answer)


@pytest.mark.parametrize("user_id", ["\ud800", "a\0b", "x" * 1025])
def test_unstorable_metadata_left_out(user_id: str):
    said = {"oauth_token": "a", "oauth_token_secret": "b", "user_id": user_id}
    read = read_token_credentials(SPEC, reply_of(said), now=NOW)
    assert TokenPair.from_secret(read.access_token).token.reveal() == "a"
    assert read.metadata == {}


def test_rfc5849_2_3_token_credentials():
    end = int(NOW.timestamp() * 1000) + 60_000
    text = f"oauth_token=a%2B1&oauth_token_secret=b%261&user_id=7&edam_expires={end}&other=x"
    read = read_token_credentials(SPEC, reply_of(text.encode()), now=NOW)
    kept = TokenPair.from_secret(read.access_token)
    assert (kept.token.reveal(), kept.secret.reveal()) == ("a+1", "b&1")
    assert (read.token_type, read.expires_in, read.scopes) == (OAUTH1, 60, ())
    assert (read.metadata, read.refresh_token) == ({"user_id": "7"}, None)
    with fails(ErrorCode.GRANT_REJECTED):
        read_token_credentials(SPEC, reply_of(b"", 401), now=NOW)
    with fails(ErrorCode.REPLY_UNREADABLE):
        read_token_credentials(SPEC, reply_of(text.replace(str(end), "soon").encode()), now=NOW)


def test_rfc5849_2_2_callback():
    came = read_oauth1_callback([("oauth_token", "t1"), ("oauth_verifier", "v1")])
    assert came.code is not None
    assert (came.code.reveal(), came.denied) == ("v1", False)
    for no in ([("denied", "t1")], [("oauth_token", "t1"), ("oauth_problem", "user_refused")]):
        assert temporary_token_in(no) == Secret("t1")
        assert read_oauth1_callback(no).denied
    refused = read_oauth1_callback([("oauth_token", "t1"), ("oauth_problem", "consumer_key_rejected")])
    assert (refused.denied, refused.error) == (False, "consumer_key_rejected")
    assert temporary_token_in([("state", "s"), ("code", "c")]) is None


@pytest.mark.parametrize(
    "query",
    [
        [("oauth_token", "t1")],
        [("oauth_token", "t1"), ("oauth_verifier", "")],
        [("oauth_token", "t1"), ("oauth_verifier", "v"), ("oauth_verifier", "w")],
        [("oauth_token", "t1"), ("oauth_token", "t2"), ("oauth_verifier", "v")],
        [("oauth_token", "t1"), ("oauth_verifier", "v\n")],
        [("oauth_token", "t" * 3000), ("oauth_verifier", "v")],
    ],
)
def test_rfc5849_2_2_malformed_callback(query: list[tuple[str, str]]):
    with fails(ErrorCode.CALLBACK_INVALID):
        read_oauth1_callback(query)
