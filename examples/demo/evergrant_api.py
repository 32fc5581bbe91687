"""The calls of Evergrant's HTTP API that the demo makes with one key."""

from datetime import datetime
from typing import Any, Self
from uuid import uuid4

import httpx2

from examples.demo.waiting import wait_until


class ApiProblem(RuntimeError):
    """A problem document in a response (RFC 9457): status and stable code."""

    def __init__(self, call: str, status: int, code: str, detail: str) -> None:
        super().__init__(f"{call} answered {status} {code}: {detail}")
        self.status = status
        self.code = code


class EvergrantApi:
    """One app of Evergrant. `callers` is the number of requests that it may have open."""

    def __init__(self, base_url: str, key: str, *, callers: int = 60) -> None:
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"},
            limits=httpx2.Limits(max_connections=callers, max_keepalive_connections=callers),
            trust_env=False,
            timeout=60,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._call("PUT", path, body)

    async def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._call("POST", path, body or {})

    async def get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path)

    async def lease(self, integration: str, subject: str) -> dict[str, Any]:
        return await self.post("/v1/lease", {"integration": integration, "subject": subject})

    async def decode(self, payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Payloads of Temporal's histories, with what is sealed opened."""
        return (await self.post("/temporal/decode", {"payloads": payloads}))["payloads"]

    async def connection(self, connection_id: str) -> dict[str, Any]:
        return await self.get(f"/v1/connections/{connection_id}")

    async def generation(self, connection_id: str, at_least: int, within_s: float) -> dict[str, Any]:
        """Wait until the connection has this generation or a later one."""

        async def reached() -> dict[str, Any] | None:
            found = await self.connection(connection_id)
            return found if found["generation"] >= at_least else None

        return await wait_until(reached, f"generation {at_least}", within_s)

    async def state(self, connection_id: str, wanted: str, within_s: float) -> dict[str, Any]:
        """Wait until the connection is in the state `wanted`."""

        async def reached() -> dict[str, Any] | None:
            found = await self.connection(connection_id)
            return found if found["state"] == wanted else None

        return await wait_until(reached, f"the state {wanted}", within_s)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": str(uuid4())} if method == "POST" else {}
        reply = await self._http.request(method, path, json=body, headers=headers)
        if reply.is_success:
            return reply.json() if reply.content else {}
        try:
            problem = reply.json()
        except ValueError:
            problem = {}
        raise ApiProblem(
            f"{method} {path}", reply.status_code, problem.get("code", ""), problem.get("detail", "")
        )


def moment(text: str) -> datetime:
    """A time as the API writes it (RFC 3339)."""
    return datetime.fromisoformat(text)
