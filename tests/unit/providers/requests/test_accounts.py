"""Replies to account lookups."""

from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.accounts import read_lookup
from tests.unit.providers.samples import fails, reply_of, spec_like

URL = "https://acme.example/sites"
NESTED = {"url": URL, "choose": "data.sites", "metadata": {"site": "id", "host": "url"}, "label": "name"}


def read(body: Any, status: int = 200, **lookup: Any):
    spec = spec_like(post_auth=[NESTED | lookup])
    return read_lookup(spec, spec.post_auth[0], reply_of(body, status, retry_after="7"))


def test_accounts_with_metadata() -> None:
    sites = [{"id": 7, "name": "Seven", "url": "u"}, {"id": "8", "name": "a\nb", "more": {}}]
    seven, eight = read({"data": {"sites": sites}})
    assert (seven.id, seven.label, seven.metadata) == ("7", "Seven", {"site": 7, "host": "u"})
    assert (eight.id, eight.label, eight.metadata) == ("8", "8", {"site": "8"})
    assert read({"data": {"sites": []}}) == ()
    assert [it.id for it in read(sites, choose="[]", id="site")] == ["7", "8"]


def test_only_accounts_that_meet_the_condition():
    sites = [{"id": 1, "kind": "shop"}, {"id": 2, "kind": "blog"}, {"kind": "blog"}, {"id": 3}]
    of_shops = {"choose_where": {"path": "kind", "values": ["shop"]}}
    assert [it.id for it in read({"data": {"sites": sites}}, **of_shops)] == ["1"]
    with fails(ErrorCode.REPLY_UNREADABLE):
        read({"data": {"sites": [*sites, {"kind": "shop"}]}}, **of_shops)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": {"sites": {}}},
        {"data": {"sites": [1]}},
        {"data": {"sites": [{}]}},
        {"data": {"sites": [{"id": {}}]}},
        {"data": {"sites": [{"id": 1}, {"id": "1"}]}},
        {"data": {"sites": [{"id": n} for n in range(201)]}},
        *({"data": {"sites": [{"id": invalid}]}} for invalid in ("\ud800", "a\0b", "a\nb")),
        [],
        b"<html>",
        b'{"data":{"sites":[]},"data":1}',
    ],
)
def test_invalid_accounts_unreadable(body: Any) -> None:
    with fails(ErrorCode.REPLY_UNREADABLE):
        read(body)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, "client_rejected"),
        (403, "client_rejected"),
        (429, "provider_rate_limited"),
        (500, "provider_error"),
    ],
)
def test_refused_lookup(status: int, code: str) -> None:
    with pytest.raises(Failure) as raised:
        read({}, status)
    assert raised.value.code == code
    assert raised.value.retry_after == (7 if status in (429, 500) else None)


def test_choice_of_a_definition() -> None:
    with pytest.raises(ValueError, match="more than one choice"):
        spec_like(post_auth=[NESTED, NESTED])
    with pytest.raises(ValueError, match="which metadata doesn't have"):
        spec_like(post_auth=[NESTED | {"id": "other"}])
    with pytest.raises(ValueError, match="without choose"):
        spec_like(post_auth=[NESTED | {"choose": None}])
    with pytest.raises(ValueError, match="without choose"):
        spec_like(post_auth=[{"url": URL, "metadata": {"a": "b"}, "choose_where": {"path": "kind"}}])


def test_unstorable_account_metadata_left_out() -> None:
    (site,) = read(b'{"data":{"sites":[{"id":1,"url":1e999}]}}')
    assert site.metadata == {"site": 1}
    (site,) = read(b'{"data":{"sites":[{"id":1,"url":"\\ud83d"}]}}')
    assert site.metadata == {"site": 1}
