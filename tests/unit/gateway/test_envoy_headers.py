"""Which headers of an app's request Envoy removes."""

from evergrant_server.gateway.envoy.check import removed_headers

KEY = [(b"X-Api-Key", b"secret")]


def test_the_apps_credential_and_other_spellings_of_the_apis_are_removed():
    given = [
        (b"authorization", b"Bearer evg"),
        (b"x-api_key", b"theirs"),
        (b"x-mine", b"1"),
        (b":path", b"/"),
    ]
    removed = removed_headers(given, KEY)
    assert {"authorization", "x_api_key", "x-api_key", "x_api-key", "cookie", "evergrant-envoy-key"} <= {
        *removed
    }
    assert not {"x-api-key", "x-mine", ":path", "host", "content-length"} & {*removed}


def test_what_proxies_say_of_a_request_is_removed_whether_or_not_it_was_seen():
    """Over HTTP Envoy shows the gateway a few headers alone."""
    known = {"forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-original-url"}
    known |= {"x-rewrite-url", "true-client-ip", "cf-connecting-ip", "x-client-ip", "x-envoy-original-path"}
    assert known <= {*removed_headers([], KEY)}
    seen = [(b"x-envoy-retry-on", b"5xx"), (b"x-forwarded-something", b"1"), (b"x_original_anything", b"1")]
    assert {name.decode() for name, _ in seen} <= {*removed_headers(seen, KEY)}


def test_a_credential_in_authorization_is_set_and_not_removed():
    assert "authorization" not in removed_headers([], [(b"Authorization", b"Bearer t")])
