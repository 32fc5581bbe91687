"""The listener of `evergrant connect`: it takes confirm codes, and failures of its own consent."""

import httpx2
import pytest
from evergrant.cli.consent import ReturnListener, _require_not_failed, failure_in
from evergrant.errors import ReconnectNeeded


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("connection_id=con_1&state=failed&error=client_rejected", ("con_1", "client_rejected")),
        ("state=failed&error=client_rejected", None),
        ("connection_id=con_1&error=%3Cb%3E", None),
        ("connection_id=con_1&state=denied", None),
    ],
)
def test_only_a_code_of_a_named_connection_is_a_failure(query: str, found: tuple[str, str] | None):
    assert failure_in(f"/?{query}") == found


def test_a_browser_that_comes_back_with_a_failure_ends_the_wait_for_its_own_consent():
    with ReturnListener() as listener:
        for query in ("connection_id=con_2&error=internal", "connection_id=con_1&error=consent_expired"):
            assert httpx2.get(f"{listener.url}?{query}").status_code == 200
        assert [listener.codes.get(timeout=60) for _ in range(2)] == ["", ""]
        _require_not_failed(listener, "con_3")
        with pytest.raises(ReconnectNeeded) as failed:
            _require_not_failed(listener, "con_1")
    assert (failed.value.code, failed.value.context) == ("consent_expired", {"connection_id": "con_1"})
    assert "makes a new link" in failed.value.repair
