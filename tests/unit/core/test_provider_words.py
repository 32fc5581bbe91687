"""What a provider says is cleaned and bounded: no credential in any form, no address of a person."""

import html
import time
from urllib.parse import quote, quote_plus

import pytest

from evergrant_server.core.provider_words import _QUERY, REDACTED, ProviderWords


def cleaned(text: str, *known: str) -> str | None:
    return ProviderWords.cleaned(None, text, known).description


def cleaned_name(name: str, *known: str) -> str | None:
    return ProviderWords.cleaned(name, None, known).error


@pytest.mark.parametrize(
    "text",
    [
        "Token has been expired or revoked.",
        "AADSTS700082: The refresh token has expired due to inactivity, on 2023-01-01T00:00:00.",
        "AADB2C90129: The provided grant has been revoked.",
        "The refresh token expired at 10/11/2022 9:18:20 PM",
        "errors.com.epicgames.account.auth_token.invalid_refresh_token",
        "invalidParameter.authCode.notFound",
        "see https://docs.github.com/apps/managing-oauth-apps/troubleshooting-oauth-app-errors",
        "OAuth 2.0 over HTTP/1.1 (RFC 6749)",
        "无效的 clientId",
        "<script>alert(1)</script>",
    ],
)
def test_words_and_names_of_errors_are_kept(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("for ann@example.org,", f"for {REDACTED},"),
        ("call +4915112345678", f"call {REDACTED}"),
        ("id 3f2a9c1e77b04d5a", f"id {REDACTED}"),
        ("https://x.example/cb?code=a&state=b now", "https://x.example/cb now"),
        ("http://x.example/a HTTPS://y.example#b", "http://x.example/a HTTPS://y.example"),
        ("call 555-123-4567 now", f"call {REDACTED} now"),
        ("call +1 (555) 123.4567", f"call +{REDACTED}"),
        ("card 4111 1111 1111 1111.", f"card {REDACTED}."),
        ("on 2023-01-01 00:00:00Z or 31.12.2024 12.30", "on 2023-01-01 00:00:00Z or 31.12.2024 12.30"),
        ("number 123.45.6789", f"number {REDACTED}"),
        ("a\r\nb\x00\x1b[31m\u202ec\u200b\ud800  d", "a b [31mc d"),
        ("", None),
        (" \n ", None),
    ],
)
def test_what_looks_personal_or_like_control_is_removed(text: str, kept: str | None) -> None:
    assert cleaned(text) == kept


@pytest.mark.parametrize(
    "token",
    [
        "Vn3_x0bq-Gk7Rz2LmT9yQw4JpXcS8uHd1FvA6oEiN5s",
        "9f86d081884c7d659a2feaa0c55ad015",
        "3b241101-e2bb-4255-8caf-4136c566a962",
        "WltcXV5fYGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3",
        "1//0gGk7Rz2LmT9yQw4JpXcS8uHd1FvA6oEiN5sCgYIARAAGBASNwF",
        "WltcXV5f%2FYGFiY2RlZmdoaWpr%3D%3D",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl",
    ],
)
@pytest.mark.parametrize("around", ["{}", "'{}'", "token={}.", "({})", "refresh_token:{},"])
def test_an_unknown_token_is_redacted_by_its_looks(token: str, around: str) -> None:
    text = cleaned(f"bad {around.format(token)} here")
    assert text is not None
    assert token not in text
    assert token[:12] not in text
    assert REDACTED in text


@pytest.mark.parametrize("secret", ["hunter2 & co", 'say "please"', "a/b+c=", "open sesame", "483920"])
def test_a_known_secret_is_redacted_in_every_form(secret: str) -> None:
    quoted = (secret, quote(secret, safe=""), quote_plus(secret), html.escape(secret))
    for form in quoted:
        text = cleaned(f"The secret {form} is wrong", secret)
        assert text == f"The secret {REDACTED} is wrong"
    assert cleaned_name(secret, secret) == REDACTED


def test_a_secret_that_invisible_characters_divide_is_found() -> None:
    assert cleaned("no open\u200b ses\u202eame", "open sesame") == f"no {REDACTED}"


def test_the_words_are_bounded_and_no_half_of_a_secret_is_left() -> None:
    assert len(cleaned("word " * 100) or "") == 200
    assert len(cleaned_name("name_" * 100) or "") == 100
    assert "sesa" not in str(cleaned("x" * 9_990 + " open sesame", "sesame"))
    assert cleaned("Vn3x0bqGk7" * 1_000 + " sesame", "sesame") is None


def test_a_standard_name_is_kept_beside_a_secret_of_its_words() -> None:
    """Else a refused client would be taken for another failure."""
    assert cleaned_name("invalid_client", "client") == "invalid_client"
    assert cleaned_name("invalid_clients", "client") == f"invalid_{REDACTED}s"


def test_a_number_is_a_name() -> None:
    assert cleaned_name("28003017") == "28003017"
    assert cleaned_name("28003017", "28003017") == REDACTED


@pytest.mark.parametrize(
    "unit", ["a", "a@", "http://", "%40", "Aa0", "aA", "\u202e", "@", "://?", "1 ", "1(", "2000-01-01 "]
)
def test_hostile_texts_take_no_time(unit: str) -> None:
    """The longest text that is read: a search of cubic time would take an hour."""
    began = time.process_time()
    cleaned(unit * (9_999 // len(unit)), "hunter2", "sesame")
    assert time.process_time() - began < 20


def test_each_address_of_a_text_is_searched_once() -> None:
    """A search that begins again inside an address without a query is of quadratic time."""
    text = "http://" * 1428
    assert [it.span() for it in _QUERY.finditer(text)] == [(0, len(text))]
