"""The agent's program, `python -m examples.demo.agent CONNECTION NOTE`. It has a key of Evergrant's alone.

It reads, is refused a note that no person has approved, asks for it, and prints a line of JSON. Once a person
has approved, it writes the note, and prints what became of that and of a second try. For comparison,
`--holds-token INTEGRATION SUBJECT` leases a token, and prints one line.
"""

import json
import sys
import threading
from datetime import timedelta

import httpx2
from evergrant import Denied, Evergrant

_PATIENCE = timedelta(minutes=2)


def use_without_holding(evergrant: Evergrant, connection_id: str, note: str) -> None:
    body = json.dumps({"note": note})
    with evergrant.proxy(connection_id) as api:
        read = api.get("/whoami").raise_for_status().json()
        unasked = _write(api, body)
        url = f"{evergrant.connection(connection_id).api_base_url}/notes"
        reason = "the person asked for a note of today's meeting"
        asked = evergrant.ask_for_call(connection_id, method="POST", url=url, body=body, reason=reason)
        print(json.dumps({"asked": asked.id, "read": read["user"], "unasked": unasked}), flush=True)
        evergrant.wait_for_approval(asked.id, _PATIENCE, every=timedelta(seconds=0.2))
        print(json.dumps({"approved": _write(api, body), "again": _write(api, body)}), flush=True)


def _write(api: httpx2.Client, body: str) -> str:
    """The API's status, or the code with which Evergrant refused to send it."""
    try:
        return str(api.post("/notes", content=body).status_code)
    except Denied as refused:
        return refused.code


def main() -> None:
    *options, first, second = sys.argv[1:]
    with Evergrant() as evergrant:
        if options == ["--holds-token"]:
            held = evergrant.token(first, second)
            print(json.dumps({"characters": len(held)}), flush=True)
        else:
            use_without_holding(evergrant, first, second)
        threading.Event().wait()  # its memory is searched before it is stopped


if __name__ == "__main__":
    main()
