"""Callbacks: state, issuer, code or error, metadata."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.requests.callback import Callback, read_callback
from providers.requests.callback_parameters import state_in
from tests.unit.providers.samples import fails, spec_like

ISSUER = "https://idp.example"
PLAIN = spec_like()
Query = list[tuple[str, str]]
GOOD: Query = [("code", "c0de"), ("state", "st"), ("iss", ISSUER)]


def judge(query: Query, *, required: bool = True, spec: ProviderSpec = PLAIN) -> Callback:
    return read_callback(
        query, expected_issuer=ISSUER, iss_required=required, spec=spec, params={}, requested=()
    )


def refused(query: Query, *, required: bool = True) -> str:
    with fails(ErrorCode.CALLBACK_INVALID) as raised:
        judge(query, required=required)
    return raised.value.detail


def test_rfc6749_4_1_2_code_and_state() -> None:
    callback = judge(GOOD)
    assert callback.code is not None
    assert callback.state is not None
    assert (callback.code.reveal(), callback.state.reveal()) == ("c0de", "st")
    assert (callback.denied, callback.error) == (False, None)
    assert "c0de" not in repr(callback)


@pytest.mark.parametrize("name", ["state", "code", "iss", "anything"])
def test_rfc6749_3_1_repeated_parameter_refused(name: str) -> None:
    value = dict(GOOD).get(name, "x")
    assert "repeated" in refused([*GOOD, (name, value), (name, value)])


@pytest.mark.parametrize(
    "query",
    [
        [],
        [("code", "c")],
        [("code", "c"), ("state", "")],
        [("state", "st"), ("iss", ISSUER)],
        [("code", ""), ("state", "st"), ("iss", ISSUER)],
        [*GOOD, ("error", "access_denied")],
        [("code", "c"), ("state", "s" * 513), ("iss", ISSUER)],
        [("code", "c" * 8193), ("state", "st"), ("iss", ISSUER)],
        [("code", "a\nb"), ("state", "st"), ("iss", ISSUER)],
        [("code", "ü"), ("state", "st"), ("iss", ISSUER)],
        [("code", "c"), ("state", "s\x00"), ("iss", ISSUER)],
        [*GOOD, *((f"p{n}", "") for n in range(50))],
        [*GOOD, ("n" * 300, "x")],
    ],
)
def test_malformed_callback_refused(query: Query) -> None:
    refused(query)


@pytest.mark.parametrize("iss", [ISSUER + "/", ISSUER.upper(), "https://evil.example", "", "x" * 3000])
@pytest.mark.parametrize("rest", [[("code", "c")], [("error", "access_denied")]])
def test_rfc9207_2_4_wrong_issuer_refused(iss: str, rest: Query) -> None:
    for required in (True, False):
        assert "iss" in refused([*rest, ("state", "st"), ("iss", iss)], required=required)


@pytest.mark.parametrize("error", ["<script>alert(1)</script>", ""])
def test_unreadable_error_code_and_description_not_kept(error: str) -> None:
    query = [("error", error), ("error_description", "<b>canary</b>"), ("state", "st"), ("iss", ISSUER)]
    callback = judge(query)
    assert (callback.denied, callback.error) == (False, "unreadable_error")
    assert "canary" not in repr(callback)


NAMES = st.sampled_from(["code", "state", "iss", "error"]) | st.text(max_size=5)
VALUES = st.sampled_from([ISSUER, "access_denied", "x"]) | st.text(max_size=600)


@settings(max_examples=300)
@given(query=st.lists(st.tuples(NAMES, VALUES), max_size=6), required=st.booleans())
def test_any_query_is_read_or_refused(query: Query, required: bool) -> None:
    try:
        callback = judge(query, required=required)
    except Failure:
        return
    assert callback.state == state_in(query)
    assert (callback.code is None) == (callback.error is not None)


# --- what comes beside the code ---------------------------------------------------------------

HOST = {"pattern": r"^accounts\.acme\.(?:example|test)$", "source": "callback", "callback_param": "server"}
HOSTED = spec_like(
    token_endpoint="https://{host}/token",
    template_params={"host": {**HOST, "normalise": ["host_of_origin", "lower"]}},
    callback_metadata_params=["realmId", "name"],
    callback_patterns={"realmId": "^[A-Za-z0-9]{1,64}$"},
)


def test_template_parameter_from_the_callback() -> None:
    given = [("server", "https://Accounts.acme.TEST/"), ("realmId", "9"), ("name", "Zoë"), ("other", "x")]
    callback = judge([*GOOD, *given], spec=HOSTED)
    assert callback.metadata == {"host": "accounts.acme.test", "realmId": "9", "name": "Zoë"}


@pytest.mark.parametrize(
    "host",
    [
        "https://evil.example",
        "https://accounts.acme.example.evil.example",
        "https://accounts.acme.example@evil.example",
        "https://accounts.acme.example/../../token?x=",
        "http://accounts.acme.example",
        "https://accounts.acme.example:8443",
        "accounts.acme.example\\.evil.example",
        "https://accounts.acme.example\n",
        "https://\u0430ccounts.acme.example",
        "",
    ],
)
def test_callback_host_must_match_its_pattern(host: str) -> None:
    with fails(ErrorCode.CALLBACK_INVALID, "host is malformed"):
        judge([*GOOD, ("server", host)], spec=HOSTED)


@pytest.mark.parametrize("realm", ["../../v3", "1\n2", "x" * 65, "1?a=b", ""])
def test_callback_metadata_must_match_its_pattern(realm: str) -> None:
    with pytest.raises(Failure, match="realmId is malformed"):
        judge([*GOOD, ("realmId", realm)], spec=HOSTED)
    with pytest.raises(Failure, match="name is malformed"):
        judge([*GOOD, ("name", "a\nb")], spec=HOSTED)


def test_callback_parameter_may_not_be_an_arbitrary_host() -> None:
    any_host = {"kind": "arbitrary_host", "source": "callback"}
    with pytest.raises(ValueError, match="may not name an arbitrary host"):
        spec_like(token_endpoint="https://{host}/token", template_params={"host": any_host})
