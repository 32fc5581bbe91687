"""Which headers pass, in both directions, and what a challenge says about scopes."""

import pytest

from evergrant_server.gateway.proxy.headers import passed_headers, response_headers

OURS = [(b"Authorization", b"Bearer at-1"), (b"x-api-key", b"id-1")]


def passed(*given: tuple[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    headers = [(name.encode(), value.encode()) for name, value in given]
    for name, value in [*passed_headers(headers, [name for name, _ in OURS]), *OURS]:
        found.setdefault(name.decode().lower(), []).append(value.decode())
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "AUTHORIZATION", "X-Api-Key", "x_api_key", "X_API-KEY", "Cookie", "Host", "DPoP"),
        *("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authorization"),
        *(
            "Proxy-Connection",
            "Proxy-Anything",
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Host",
            "X_Forwarded_Proto",
        ),
        *("X-Real-IP", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "Expect", "Via"),
        *("Content-Length", "Evergrant-Anything", "traceparent", "X-Method-Override"),
        *("X-Forwarded", "Forwarded-For", "True-Client-IP", "CF-Connecting-IP", "cf-connecting-ipv6"),
        *("X-Client-IP", "Client-IP", "Fastly-Client-IP", "X-Envoy-External-Address", "x-envoy-anything"),
        *("X_Original_URI", "X-Original-Forwarded-For", "X-Rewrite-Anything", "Remote-User", "CDN-Loop"),
    ],
)
def test_a_request_header_that_stays_here(name: str):
    found = passed((name, "evil"), ("Accept", "text/html"))
    assert "evil" not in [value for values in found.values() for value in values]
    assert found["authorization"] == ["Bearer at-1"]
    assert (found["x-api-key"], found["accept"]) == (["id-1"], ["text/html"])
    assert "accept-encoding" not in found


def test_what_connection_names_stays_here_and_cannot_take_the_credential_away():
    found = passed(("Connection", "authorization, X-Api-Key , x_custom"), ("X-Custom", "1"), ("X-Other", "2"))
    assert (found["authorization"], found["x-api-key"]) == (["Bearer at-1"], ["id-1"])
    assert "x-custom" not in found
    assert found["x-other"] == ["2"]


@pytest.mark.parametrize(
    "name",
    [
        *("Set-Cookie", "Access-Control-Allow-Origin", "Alt-Svc", "Clear-Site-Data", "Refresh", "Connection"),
        *(
            "Strict-Transport-Security",
            "WWW-Authenticate",
            "Proxy-Authenticate",
            "Evergrant-Error",
            "Transfer-Encoding",
        ),
        *("Content-Security-Policy", "X-Content-Type-Options", "Content-Encoding", "Upgrade", "Hop"),
    ],
)
def test_a_response_header_that_stays_here(name: str):
    given = [
        (name.encode(), b"evil"),
        (b"Connection", b"hop"),
        (b"ETag", b'"1"'),
        (b"Location", b"https://x/"),
    ]
    found = response_headers(given)
    assert b"evil" not in [value for _, value in found]
    kept = {name: value for name, value in found}
    assert (kept[b"ETag"], kept[b"Location"]) == (b'"1"', b"https://x/")
    assert kept[b"Content-Security-Policy"] == b"sandbox"
    assert kept[b"X-Content-Type-Options"] == b"nosniff"
