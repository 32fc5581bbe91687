"""An authorization server that rotates strictly, kills families, and writes down every use.

Rotation `grace`: the token before stays good for `grace_s` seconds. A code used twice kills what the
first use gave (RFC 6749 section 4.1.2).
"""

import time
from asyncio import StreamWriter
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from tests.fakes.providers.scripted_provider import Call, Family, ScriptedProvider

GRACE_S = 60.0


@dataclass
class Use:
    """One request that carried a single-use credential."""

    credential: str
    worker: str
    came: float  # monotonic seconds, as all of these
    acted: float | None = None
    over: float | None = None
    good: bool = False

    def __str__(self) -> str:
        acted = "not acted" if self.acted is None else f"acted after {self.acted - self.came:.2f} s"
        over = "never over" if self.over is None else f"over after {self.over - self.came:.2f} s"
        return f"used, {acted}, {over}, {'good' if self.good else 'refused'}, {self.credential[:8]}"


class StrictProvider(ScriptedProvider):
    """The scripted server with a memory."""

    def __init__(self, rotation: str, expires_in: int) -> None:
        super().__init__(rotation="none" if rotation == "none" else "strict", expires_in=expires_in)
        self.uses: list[Use] = []
        self._grace = rotation == "grace"
        self._codes_used: dict[str, Family] = {}
        self._replaced: dict[str, float] = {}

    async def _reply(self, call: Call, writer: StreamWriter) -> bytes | None:
        credential = call.params.get("refresh_token") or call.params.get("code")
        if call.endpoint != "token" or not credential:
            return await super()._reply(call, writer)
        use = Use(credential, call.headers.get("x-harness-worker", ""), time.monotonic())
        self.uses.append(use)
        try:
            return await super()._reply(call, writer)
        finally:
            use.over = time.monotonic()

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        headers = {"Date": formatdate(usegmt=True), **headers}  # RFC 9110 section 6.6.1: who has a clock says
        if data is not None and "access_token" in data and "dpop" in call.headers:
            data = {**data, "token_type": "DPoP"}  # RFC 9449 section 5
        credential = call.params.get("refresh_token") or call.params.get("code")
        for use in reversed(self.uses):
            if use.credential == credential and use.acted is None:
                use.acted, use.good = time.monotonic(), code == 200
                break
        return code, headers, data

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        code = params.get("code", "")
        if code in self._codes_used:
            self._codes_used[code].alive = False
            return 400, {"error": "invalid_grant"}
        status, data = super()._token(params)
        if code and status == 200:
            self._codes_used[code] = self.families[-1]
        return status, data

    def _refresh(self, token: str) -> tuple[int, dict[str, Any]]:
        if self._grace:
            replaced = self._replaced.setdefault(token, time.monotonic())
            for family in self.families:
                again = token in family.used and family.alive
                if again and time.monotonic() - replaced <= GRACE_S:
                    self.refreshes += 1
                    return 200, self._issue(family)
        return super()._refresh(token)

    def family_of(self, refresh_token: str | None) -> Family | None:
        """The family that this token is or was of."""
        of = (it for it in self.families if refresh_token in it.used or refresh_token == it.refresh_token)
        return next(of, None)

    def usable(self, refresh_token: str | None) -> bool:
        """Would this refresh token still be honoured?"""
        for family in self.families:
            current = refresh_token == family.refresh_token
            graced = self._grace and refresh_token in family.used
            if family.alive and (current or graced):
                return True
        return False

    def gave(self, before: float, worker: str | None = None) -> bool:
        """Had the newest answer until then (to `worker`) brought tokens?"""
        acted = [
            (use.acted, use.good)
            for use in self.uses
            if use.acted is not None and use.acted < before and worker in (None, use.worker)
        ]
        return max(acted)[1] if acted else False

    def in_flight_together(self) -> int:
        """Pairs of uses of one credential that were under way at the same time."""
        pairs = 0
        acted = [use for use in self.uses if use.acted is not None]  # others used nothing
        for number, one in enumerate(acted):
            for other in acted[number + 1 :]:
                if one.credential == other.credential:
                    ends = one.over if one.over is not None else float("inf")
                    pairs += other.came < ends
        return pairs
