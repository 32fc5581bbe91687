"""`EVERGRANT_EXPIRY_ANNOUNCE_DAYS`, as an operator may write it."""

import pytest

from evergrant_server.settings import BadSettings, load_settings

NAME = "EVERGRANT_EXPIRY_ANNOUNCE_DAYS"


@pytest.mark.parametrize(
    ("written", "meant"), [("7, 30", (30, 7)), ("1,1,14", (14, 1)), ("0", ()), (None, (14, 3, 1))]
)
def test_days_are_read_in_any_order(
    written: str | None, meant: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    if written is not None:
        monkeypatch.setenv(NAME, written)
    assert load_settings().expiry_announce_days == meant


@pytest.mark.parametrize("written", ["soon", "-1", "366", "1.5"])
def test_what_is_no_day_is_named(written: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(NAME, written)
    with pytest.raises(BadSettings, match=NAME):
        load_settings()
