"""Where the week happens: the platform, the issuer, receivers, the apps' part, tasks, and their pictures."""

import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, ViewportSize

from examples.demo.evergrant_api import ApiProblem, EvergrantApi
from examples.demo.platform import EvergrantProcess
from tests.e2e.flows.test_implicit import running_browser
from tests.e2e.flows.test_people import People
from tests.e2e.pages.axe import AXE, contrast_problems, layout_problems, problems
from tests.e2e.week.person import Person
from tests.fakes.events.webhook_receiver import Receiver
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.warm_dev import start_dev
from tests.fakes.providers.oidc_provider import OidcProvider, running_oidc_provider

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
_STEP_MS = 20_000  # the longest that a step of a person waits
ADMIN, SECOND_ADMIN, AUDITOR = "admins-ann", "admins-bob", "auditors-eve"


@dataclass
class Outcome:
    """What became of a task. `violations`: what is wrong with its page, by the picture's name."""

    number: int
    title: str
    seconds: float = 0.0
    clicks: int = 0
    violations: list[str] = field(default_factory=list[str])
    failure: str = ""


class Office:
    """`api` is the tenant's first admin key, by which outcomes are compared; `app` is the app `sync`."""

    ann: Person
    app: EvergrantApi

    def __init__(
        self,
        platform: EvergrantProcess,
        data: Path,
        issuer: OidcProvider,
        receivers: tuple[Receiver, Receiver],
        browser: Browser,
        *,
        scripts: bool,
    ) -> None:
        self.platform, self.data, self.issuer, self.browser = platform, data, issuer, browser
        self.receiver, self.siem = receivers
        self.api = EvergrantApi(platform.api, platform.admin_key)
        self.scripts = scripts
        self.people: list[Person] = []
        self.kept: dict[str, str] = {}  # ids and keys that a later task needs
        self.out: Path | None = None
        self.number = 0  # of the task that is being done
        self.problems: list[str] = []
        self.violations: list[str] = []  # of the task's pages

    async def somebody(self, name: str) -> Person:
        """A person in a browser window of their own."""
        size = ViewportSize(width=1280, height=800)
        page = await self.browser.new_page(viewport=size, java_script_enabled=self.scripts)
        page.set_default_timeout(_STEP_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda line: self.problems.append(line.text) if "Policy" in line.text else None)
        person = Person(page, self.platform.api, name)
        self.people.append(person)
        return person

    async def restart(self, **settings: str) -> None:
        """The operator changes settings, and starts the platform again at its address."""
        port, gateway = (urlsplit(url).port for url in (self.platform.api, self.platform.gateway))
        allowed = allowance(self.issuer, self.receiver, self.siem)
        await self.platform.stop()
        settings["EVERGRANT_GATEWAY_PORT"] = str(gateway)
        self.platform = await start_dev(self.data, allowed, settings, port=port)

    # --- the apps' part ---------------------------------------------------------------------------

    async def connects(self, subject: str) -> dict[str, Any]:
        """The app makes a connection of `crm`, and its subject consents at the issuer."""
        begun = await self.app.post("/v1/connections", {"integration": "crm", "subject": subject})
        return await self.consents(begun, subject)

    async def consents(self, begun: dict[str, Any], subject: str) -> dict[str, Any]:
        async with self.issuer.person(subject) as person:
            await person.consent(begun["connect_url"])
        return await self.app.state(begun["id"], "active", PATIENCE_S)

    async def refusal(self, subject: str) -> str:
        """Why the app gets no token of the subject's connection; empty: it gets one."""
        try:
            await self.app.lease("crm", subject)
        except ApiProblem as problem:
            return problem.code
        return ""

    async def connection(self, subject: str) -> dict[str, Any]:
        """The subject's connection at `crm`, as the API has it."""
        (listed,) = (await self.api.get(f"/v1/connections?integration=crm&subject={subject}"))["items"]
        return listed

    async def refreshes(self, subject: str) -> None:
        """The app asks for a refresh, and waits for its end, a good one or not."""
        connection = await self.connection(subject)

        async def ended() -> bool:
            try:
                seen = {"generation": connection["generation"]}
                await self.app.post(f"/v1/connections/{connection['id']}/refresh", seen)
            except ApiProblem as problem:
                return problem.code != "refresh_pending"
            return True

        await eventually(ended)

    # --- pictures ---------------------------------------------------------------------------------

    async def looks_at(self, person: Person, words: str) -> None:
        """Photograph a person's page, and note what is wrong with it. Nothing before the chosen task."""
        if self.out is None:
            return
        name = f"{self.number:02}-{re.sub(r'[^a-zA-Z0-9]+', '-', words)}"
        if self.scripts:  # axe is one
            await person.page.evaluate(AXE.read_text(encoding="utf-8"))
        for width in WIDTHS:
            await person.page.set_viewport_size({"width": width, "height": 844 if width < 600 else 800})
            for scheme in SCHEMES:
                await person.page.emulate_media(color_scheme=scheme)
                wrong = await self._problems(person, scheme)
                self.violations += [f"{name}, {width} px, {scheme}: {problem}" for problem in wrong]
                await person.page.screenshot(path=self.out / f"{name}-{width}-{scheme}.png", full_page=True)
        await person.page.emulate_media(color_scheme="light")

    async def _problems(self, person: Person, scheme: str) -> list[str]:
        if not self.scripts:
            return await layout_problems(person.page)
        return await (problems if scheme == "light" else contrast_problems)(person.page)


Do = Callable[[Office], Awaitable[Person | None]]
TASKS: dict[int, tuple[str, Do]] = {}


def task(number: int, title: str) -> Callable[[Do], Do]:
    """Register a task of the week. It returns whose page is photographed, by default the admin's."""

    def register(do: Do) -> Do:
        assert number not in TASKS, TASKS[number]
        TASKS[number] = title, do
        return do

    return register


def allowance(issuer: OidcProvider, *receivers: Receiver) -> str:
    """What the platform may call on this machine."""
    return ",".join((issuer.issuer.removeprefix("http://"), *(receiver.allowance for receiver in receivers)))


@asynccontextmanager
async def opened(*, scripts: bool) -> AsyncIterator[Office]:
    """The office on Monday morning: people log in at the issuer, and nothing else is there."""
    with TemporaryDirectory(prefix="evergrant-week-") as folder:
        async with AsyncExitStack() as stack:
            issuer = await stack.enter_async_context(running_oidc_provider())
            receiver = await stack.enter_async_context(Receiver())
            siem = await stack.enter_async_context(Receiver())
            browser = await stack.enter_async_context(running_browser())
            data = Path(folder) / "data"
            platform = await start_dev(data, allowance(issuer, receiver, siem))
            office = Office(platform, data, issuer, (receiver, siem), browser, scripts=scripts)
            try:
                people = People(platform, office.api, office.api, "")
                people.server = issuer
                await people.set_up()
                office.ann = await office.somebody(ADMIN)
                await office.ann.logs_in()
                yield office
            finally:
                await office.platform.stop()


async def done(office: Office, number: int) -> Outcome:
    """Do a task, and look at its page."""
    title, do = TASKS[number]
    office.number, office.violations = number, []
    outcome = Outcome(number, title)
    began, clicked = time.monotonic(), sum(person.clicks for person in office.people)
    person: Person | None = None
    try:
        person = await do(office)
    except Exception:  # the table says which; the tasks after it may still be done
        shown = "".join(f"\n{person.name} at {person.page.url}" for person in office.people)
        outcome.failure = traceback.format_exc() + shown
    outcome.seconds = time.monotonic() - began
    outcome.clicks = sum(person.clicks for person in office.people) - clicked
    await office.looks_at(person or office.ann, title)
    outcome.violations = office.violations
    return outcome
