"""One process of a coding agent: a program that shares a file of tokens with others.

    python process.py FILE TOKEN_ENDPOINT CLIENT_ID RESOURCE_URL

It reads a command a line from its input, and answers each with a line of JSON:

- `act NOW`: read the file, refresh if the access token has expired by NOW, write what came, call the resource
- `read NOW`, then `finish NOW`: the same, with the others' turn between reading and refreshing

As agents do, it takes no lock, writes a moment after it was answered, and on a 401 looks into the file again.
"""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

PING = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


class SessionLost(Exception):
    """The refresh token was refused: a person would have to authorize again."""


class AgentProcess:
    def __init__(self, file: str, token_endpoint: str, client_id: str, resource: str) -> None:
        self._file, self._endpoint, self._client, self._resource = file, token_endpoint, client_id, resource
        self.read: dict[str, Any] = {}

    def read_file(self) -> None:
        with open(self._file, encoding="utf-8") as file:
            self.read = json.load(file)

    def act(self, now: float) -> dict[str, int]:
        """Call the resource with a valid token. Raises SessionLost."""
        refreshes = 0
        if self.read["expires_at"] <= now:
            self._refresh(now)
            refreshes += 1
        while (status := self._call()) == 401:
            tried = self.read["access_token"]
            self.read_file()
            if self.read["access_token"] == tried:
                self._refresh(now)
                refreshes += 1
        return {"refreshes": refreshes, "status": status}

    def _refresh(self, now: float) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": self.read["refresh_token"]}
        data = urllib.parse.urlencode({**form, "client_id": self._client}).encode()
        status, body = _send(self._endpoint, data, {"Content-Type": "application/x-www-form-urlencoded"})
        if status != 200:
            raise SessionLost(f"{status} {body.decode()}")
        came = json.loads(body)
        self.read = {**came, "expires_at": now + came["expires_in"]}
        time.sleep(random.uniform(0, 0.02))
        written = f"{self._file}.{os.getpid()}"
        with open(written, "w", encoding="utf-8") as file:
            json.dump(self.read, file)
        os.replace(written, self._file)

    def _call(self) -> int:
        token = {"Authorization": f"Bearer {self.read['access_token']}"}
        return _send(self._resource, PING, JSON_HEADERS | token)[0]


def _send(url: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def main() -> None:
    agent = AgentProcess(*sys.argv[1:])
    for line in sys.stdin:
        word, now = line.split()
        try:
            if word != "finish":
                agent.read_file()
            said: dict[str, Any] = {} if word == "read" else agent.act(float(now))
        except SessionLost as lost:
            said = {"lost": str(lost)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
