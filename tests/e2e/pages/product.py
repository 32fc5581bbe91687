"""A product with a settings page and a strict policy: the connect element, as it is built, in a browser."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergrant import AsyncEvergrant
from evergrant.testing import FakeEvergrant
from evergrant.web import Offer
from evergrant.web.fastapi import consent_router
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from playwright.async_api import Browser, Page
from starlette.middleware.sessions import SessionMiddleware

from tests.e2e.flows.test_implicit import running_browser
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TRUSTED = "; require-trusted-types-for 'script'"
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">'
    '<rect width="36" height="36" rx="8" fill="#e5622e"/><circle cx="18" cy="18" r="8" fill="#fff"/></svg>'
)
CSS = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2024 }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --ink: #e8eaed } }
body { margin: 0; padding: 1.5rem 1rem; background: var(--ground); color: var(--ink) }
body { font: 1rem/1.5 sans-serif }
main { max-width: 44rem; margin: auto }
.brand evergrant-connect { --evergrant-accent: light-dark(#5b21b6, #c4b5fd); --evergrant-radius: 2rem }
.brand evergrant-connect::part(title) { letter-spacing: .02em }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Settings</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/product.css"><script type="module" src="/evergrant-connect.js"></script>
</head><body class="{brand}"><main><h1>Settings</h1><h2>Connections</h2>
<evergrant-connect base="{base}" pick></evergrant-connect></main></body></html>
"""


def _account(label: str, account: str | None, status: str, turn: str | None, reason: str | None) -> Any:
    return {"label": label, "account": account, "status": status, "turn": turn, "reason": reason}


def _integration(title: str, *accounts: Any, logo: str | None = None, several: bool = False) -> Any:
    name = title.lower().replace(" ", "-")
    shown = {"integration": name, "title": title, "logo": logo, "several": several}
    return {**shown, "accounts": list(accounts)}


EVERY_STATE = {
    "integrations": [
        _integration(
            "HubSpot",
            _account("default", "ann@acme.example", "connected", None, None),
            _account("account-2", "sales.of.the.whole.region@acme.example", "connected", None, None),
            logo="/logo.svg",
            several=True,
        ),
        _integration("Google Calendar", logo="/absent.svg"),
        _integration(
            "GitHub",
            _account(
                *("default", "ann-of-acme", "reconnect", "you"),
                "GitHub no longer accepts the access that you gave.",
            ),
        ),
        _integration(
            "Xero",
            _account(
                *("default", None, "failing", "admin"),
                "The way to Xero isn't set up here as it should be.",
            ),
        ),
        _integration(
            "Dropbox",
            _account(
                *("default", "ann@acme.example", "failing", "time"),
                "Dropbox doesn't answer at the moment.",
            ),
        ),
        _integration(
            "Slack", _account("default", None, "pending", "you", "You haven't finished connecting it.")
        ),
        _integration(
            "Notion",
            _account("default", None, "ending", "time", "Notion is being told to end the access."),
        ),
    ],
    "headers": {},
    "notice": {"status": "connected", "turn": None, "reason": "It is connected."},
}
FAILED = {
    "status": "failed",
    "turn": "operator",
    "reason": "HubSpot can't be reached from here.",
}


async def built(folder: Path, smoke: str = "") -> bytes:
    """The element's file, as `make typescript` builds it; `smoke` is TypeScript that is compiled with it."""
    (folder / "src").mkdir(parents=True)
    if smoke:
        (folder / "src/smoke.ts").write_text(smoke)
    pipe = asyncio.subprocess.PIPE
    command = ("bash", str(ROOT / "clients/web/build.sh"), sys.prefix, str(folder))
    child = await asyncio.create_subprocess_exec(
        *command, env=dict(os.environ), stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0, output.decode()
    return (folder / "dist/evergrant-connect.js").read_bytes()


@dataclass
class Product:
    """A browser's way to the settings page; `fake` is the Evergrant behind it."""

    url: str
    fake: FakeEvergrant
    browser: Browser
    script: bytes
    problems: list[str]

    async def page(self, **context: Any) -> Page:
        """One of a new browser. What it complains of is in `problems`."""
        page = await self.browser.new_page(**context)
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._note)
        return page

    def _note(self, message: Any) -> None:
        if "Policy" in message.text or "TrustedHTML" in message.text:
            self.problems.append(message.text)


@asynccontextmanager
async def running_product(folder: Path, smoke: str = "") -> AsyncIterator[Product]:
    script = await built(folder, smoke)
    with FakeEvergrant() as fake:
        evergrant = AsyncEvergrant(fake.url, fake.api_key)
        async with served(_app(evergrant, script)) as url, running_browser() as browser:
            yield Product(url, fake, browser, script, [])
        await evergrant.aclose()


def _app(evergrant: AsyncEvergrant, script: bytes) -> FastAPI:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, secret_key="for-this-test-only")

    def subject(request: Request) -> str | None:
        return request.session.get("user")

    offers = [Offer("crm", "The CRM", "/logo.svg", several=True), Offer("code", "The Code")]
    pieces = consent_router(evergrant, subject=subject, after="/settings", login="/login", offers=offers)
    app.include_router(pieces, prefix="/evergrant")

    @app.get("/login")
    def log_in(request: Request) -> Response:
        request.session["user"] = "alice"
        return RedirectResponse("/settings", 303)

    @app.get("/logout")
    def log_out(request: Request) -> Response:
        request.session.clear()
        return Response()

    @app.get("/settings")
    def settings(base: str = "/evergrant", brand: str = "") -> Response:
        policy = POLICY if base == "/states" else POLICY + TRUSTED  # axe writes HTML
        headers = {"Content-Security-Policy": policy}
        return HTMLResponse(PAGE.format(base=base, brand=brand), headers=headers)

    @app.get("/states/connections")
    def every_state() -> Response:
        return JSONResponse(EVERY_STATE)

    @app.post("/states/{rest:path}")
    def refused() -> Response:
        return JSONResponse(FAILED, 503)

    for path, content, kind in (
        ("/evergrant-connect.js", script, "text/javascript"),
        ("/product.css", CSS.encode(), "text/css"),
        ("/logo.svg", LOGO.encode(), "image/svg+xml"),
    ):
        app.add_api_route(path, _file(content, kind))
    return app


def _file(content: bytes, kind: str) -> Any:
    def answer() -> Response:
        return Response(content, media_type=kind)

    return answer
