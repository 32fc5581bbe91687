"""One value in one place: what is sealed opens there, and nowhere else."""

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import SecretLeak
from evergrant_server.crypto import (
    AssociatedData,
    Sealed,
    SealingKey,
    key_id_of,
    new_sealing_key,
    open_sealed,
    seal,
)
from evergrant_server.crypto.envelope import encode_parts
from tests.fakes.failures import fails

PLACE = AssociatedData("acme", "connection_grant", "con_1/main", "sealed_access", 3)
KEY = new_sealing_key("cky")
parts = st.lists(st.one_of(st.text(max_size=6), st.integers(-3, 300)), max_size=5)
places = st.builds(
    AssociatedData,
    *(st.text(max_size=4) for _ in range(4)),
    generation=st.integers(min_value=0, max_value=12),
)


@given(parts, parts)
@example(["ab", "c"], ["a", "bc"])
@example(["1"], [1])
@example(["a", ""], ["a"])
def test_no_two_sequences_of_parts_share_an_encoding(one: list[str | int], two: list[str | int]):
    assert (encode_parts(*one) == encode_parts(*two)) == (one == two)


@given(st.binary(max_size=300), places)
def test_what_is_sealed_comes_back(value: bytes, place: AssociatedData):
    sealed = seal(KEY, place, value)
    assert open_sealed(KEY, place, sealed) == value
    assert key_id_of(sealed, place) == KEY.id
    if len(value) >= 8:
        assert value not in bytes(sealed)


@given(places, places)
def test_it_opens_in_its_own_place_alone(one: AssociatedData, two: AssociatedData):
    sealed = seal(KEY, one, b"value")
    if one == two:
        assert open_sealed(KEY, two, sealed) == b"value"
        return
    with fails(ErrorCode.SEAL_BROKEN) as caught:
        open_sealed(KEY, two, sealed)
    assert caught.value.context == {"table": two.table, "row": two.row, "column": two.column}


@given(st.data())
def test_any_change_is_seen(data: st.DataObject):
    sealed = seal(KEY, PLACE, b"a refresh token")
    place = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.integers(1, 255))
    changed = bytearray(sealed)
    changed[place] ^= other
    with fails(ErrorCode.SEAL_BROKEN):
        open_sealed(KEY, PLACE, bytes(changed))
    with fails(ErrorCode.SEAL_BROKEN):
        open_sealed(KEY, PLACE, sealed[:place])  # cut


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_refused_and_never_crash(raw: bytes):
    for candidate in (raw, b"EVS" + raw, b"EVS\x01" + raw):
        with fails(ErrorCode.SEAL_BROKEN):
            open_sealed(KEY, PLACE, candidate)


def test_another_key_of_the_same_name_is_refused():
    sealed = seal(KEY, PLACE, b"value")
    with pytest.raises(Failure, match="altered"):
        open_sealed(SealingKey(KEY.id, new_sealing_key("x").reveal()), PLACE, sealed)


def test_version_and_key_are_part_of_what_is_authenticated():
    assert PLACE.authenticated_data("a", 1) != PLACE.authenticated_data("a", 2)
    assert PLACE.authenticated_data("a", 1) != PLACE.authenticated_data("b", 1)


def test_no_nonce_repeats():
    start = 5 + len(KEY.id)
    nonces = {bytes(seal(KEY, PLACE, b"same"))[start : start + 12] for _ in range(5_000)}
    assert len(nonces) == 5_000


def test_keys_and_sealed_bytes_do_not_print_or_travel():
    key = SealingKey("k", bytes(range(7, 39)))
    assert repr(key) == "SealingKey('k', ***)"
    assert str(Sealed(b"EVSabc")) == f"{Sealed(b'EVSabc')!r}" == "<sealed, 6 bytes>"
    with pytest.raises(SecretLeak):
        pickle.dumps(key)
    for name, raw in (("k", b"short"), ("", bytes(32)), ("n" * 256, bytes(32))):
        with pytest.raises(ValueError, match="key"):
            SealingKey(name, raw)
