"""Which headers of an app's request Envoy removes."""

from evergrant_server.gateway.envoy.headers import removed_headers

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


def test_a_credential_in_authorization_is_set_and_not_removed():
    assert "authorization" not in removed_headers([], [(b"Authorization", b"Bearer t")])
