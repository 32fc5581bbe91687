"""How `EVERGRANT_EXPIRY_ANNOUNCE_DAYS` is parsed, and what it refuses."""

import pytest

from evergrant_server.settings import BadSettings, load_settings

NAME = "EVERGRANT_EXPIRY_ANNOUNCE_DAYS"


@pytest.mark.parametrize(
    ("text", "days"), [("7, 30", (30, 7)), ("1,1,14", (14, 1)), ("0", ()), (None, (14, 3, 1))]
)
def test_days_are_read_in_any_order(text: str | None, days: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    if text is not None:
        monkeypatch.setenv(NAME, text)
    assert load_settings().expiry_announce_days == days


@pytest.mark.parametrize("text", ["soon", "-1", "366", "1.5"])
def test_an_invalid_day_names_the_setting(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(NAME, text)
    with pytest.raises(BadSettings, match=NAME):
        load_settings()
