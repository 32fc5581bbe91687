"""Requests that Evergrant signs: what the clients send, and what they make of it."""

import pytest
from evergrant import ProtocolError

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse

PATH = "POST /v1/connections/con_1/signatures"
URL = "https://api.example/1?q=a%20b"


def signed(**more: object) -> ScriptedResponse:
    body = {"headers": {"Authorization": "OAuth x"}, "generation": 3, "connection_id": "con_1"}
    return ScriptedResponse(200, body | more)


@pytest.mark.parametrize("form", [{"a": "1"}, [("a", "1")]])
async def test_a_signature_is_headers_for_one_request(
    caller: Caller, evergrant: ScriptedEvergrant, form: object
):
    evergrant.script(PATH, signed())
    made = await caller.call("sign", "con_1", "post", URL, form)
    assert (made.headers, made.generation) == ({"Authorization": "OAuth x"}, 3)
    assert "OAuth" not in repr(made)
    assert evergrant.seen[0].body == {"method": "POST", "url": URL, "form": [["a", "1"]]}


async def test_what_is_no_signature_is_refused(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(PATH, signed(headers={"Authorization": 7}))
    with pytest.raises(ProtocolError):
        await caller.call("sign", "con_1", "GET", URL)
