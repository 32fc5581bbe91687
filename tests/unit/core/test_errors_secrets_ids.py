"""The table of failures is whole; secrets can't be shown; ids have their shape."""

import copy
import json
import pickle

import pytest
from pydantic import BaseModel

from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind, Repairer, RetryAdvice
from evergrant_server.core.ids import PREFIXES, is_id, is_slug, new_id
from evergrant_server.core.secret import Secret, SecretLeak
from evergrant_server.core.text import is_storable

STATUS_OF_KIND = {
    FailureKind.RECONNECT_NEEDED: {409, 400},
    FailureKind.CLIENT_MISCONFIGURED: {424},
    FailureKind.PROVIDER_UNAVAILABLE: {503, 429},
    FailureKind.DENIED: {403},
    FailureKind.PLATFORM_UNAVAILABLE: {503, 500, 429, 409},
    FailureKind.BAD_REQUEST: {400, 401, 404, 405, 409, 413, 421},
}


def test_every_code_has_a_row_and_every_row_a_repair():
    assert set(FAILURES) == set(ErrorCode)
    for rule in FAILURES.values():
        assert rule.status in STATUS_OF_KIND[rule.kind]
        assert rule.meaning.endswith(".")
        assert rule.repair.endswith((".", "…"))
    for code, rule in FAILURES.items():
        if rule.retry is RetryAdvice.BACKOFF and code is not ErrorCode.IDENTITY_NEEDED:  # which sends nothing
            assert rule.repairer in (Repairer.TIME, Repairer.OPERATOR)


class Holder(BaseModel):
    secret: Secret


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "%s".__mod__, lambda s: repr(Holder(secret=s)), lambda s: f"{s!r:>20}"]
)
def test_a_secret_does_not_print(show):
    assert "hunter2" not in show(Secret("hunter2"))


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        copy.deepcopy,
        json.dumps,
        lambda s: Holder(secret=s).model_dump(),
        lambda s: Holder(secret=s).model_dump_json(),
        lambda s: Holder(secret=s).model_dump(mode="json"),
    ],
)
def test_a_secret_refuses_to_leave(leak):
    with pytest.raises((SecretLeak, TypeError, ValueError)) as caught:
        leak(Secret("hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ({"a": ["b", {"c": 7, "d": None}]}, True),
        (["\U0001f600"], True),
        ({"a": [{"b": "\ud800"}]}, False),
        ({"a": {"\udfff": 1}}, False),
        (["a", "\0"], False),
    ],
)
def test_every_text_of_a_document_is_looked_at(said: object, whole: bool):
    assert is_storable(said) is whole


def test_ids_are_typed_by_prefix():
    for prefix in PREFIXES:
        fresh = new_id(prefix)
        assert is_id(fresh, prefix)
        assert not any(is_id(fresh, other) for other in PREFIXES if other != prefix)
    with pytest.raises(ValueError, match="no id has the prefix"):
        new_id("xyz")


@pytest.mark.parametrize(
    ("name", "good"),
    [("a", True), ("crm-prod", True), ("-a", False), ("A", False), ("a" * 64, False), ("", False)],
)
def test_slugs(name: str, good: bool):
    assert is_slug(name) is good


@pytest.mark.parametrize(
    "shape", [lambda it: is_slug(f"crm{it}"), lambda it: is_id(new_id("con") + it, "con")]
)
def test_a_name_with_a_newline_behind_it_is_another_name(shape):
    assert shape("")
    assert not shape("\n")
