"""Renders the subject's pages; the templates of all pages, which escape every value, and miss none."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evergrant_server.console.advice import WayOut, next_step, what_happened, words_for_admins
from evergrant_server.console.logos import Logos, Parties, Party
from evergrant_server.console.times import ago, counted, moment
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.connections.grant import AccountOption
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.people.logins import CommandStart
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.secret import Secret

FOLDER = Path(__file__).parent


def new_environment() -> Environment:
    """Compiles each template once. Times are UTC, with how long ago beside them."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,  # regardless of the file's extension
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "ago": ago, "counted": counted}
    return environment


_TEMPLATES = new_environment()
STYLE = (FOLDER / "static" / "evergrant.css").read_bytes()
_FRAGMENT_SCRIPT = (FOLDER / "static" / "fragment.js").read_text("utf-8")
FRAGMENT_SCRIPT_HASH = f"sha256-{b64encode(sha256(_FRAGMENT_SCRIPT.encode()).digest()).decode()}"

_SCOPE_DESCRIPTIONS = {
    "openid": "Know who you are",
    "profile": "See your name and profile",
    "email": "See your email address",
    "address": "See your postal address",
    "phone": "See your phone number",
    "offline_access": "Keep access while you are away",
    "offline": "Keep access while you are away",
    "offline.access": "Keep access while you are away",
    "read": "Read your data",
    "write": "Change your data",
}


class OwnUse(NamedTuple):
    """One use of a person's connection: when, by which app, in words, and the place of its audit record."""

    at: datetime
    by: str
    what: str
    record: str


class OwnAccount(NamedTuple):
    """A connection as its person sees it. `account` is the name that the provider gave, if that is known.
    `asked_by` is the app that has the link of a new consent, while a campaign asks for one."""

    connection: Connection
    provider: Party
    account: str | None
    last: OwnUse | None
    asked_by: str | None = None


class OwnApproval(NamedTuple):
    """What waits for a decision. `is_sponsored`: the person answers for the agent that asks."""

    id: str
    title: str
    why: str
    ends_at: datetime
    is_sponsored: bool = False


class OwnDecision(NamedTuple):
    """All that a decision is about, its members by name, and what this person may do."""

    approval: OwnApproval
    exact: Mapping[str, str]
    may_approve: bool
    may_deny: bool


class OwnProgram(NamedTuple):
    """What acts for a person: a client, or an agent by a delegation. `used_at`: its last call."""

    id: str
    name: str
    reach: str
    since: datetime
    used_at: datetime | None
    connection_id: str | None


class Pages:
    """The templates, each compiled once in a process."""

    def __init__(self, logos: Logos | None = None) -> None:
        self.logos = logos or Logos()

    def connect(
        self, *, parties: Parties, subject: str, consent: Consent, csrf: str, login: str | None = None
    ) -> str:
        """The requested access, and a button to continue. `login`: where the subject logs in first."""
        return self._render(
            "connect.html",
            title=f"Connect {parties.provider.name}",
            parties=parties,
            subject=subject,
            login=login,
            scopes=_described(consent.all_scopes),
            csrf=csrf,
        )

    def redirecting(self, *, parties: Parties | None, to: str, url: str) -> str:
        """Redirects by `meta refresh`: `form-action` would apply to every hop of an HTTP redirect."""
        return self._render("leaving.html", title=f"Taking you to {to}", parties=parties, url=url)

    def device(self, *, parties: Parties, consent: Consent, device: DeviceCode) -> str:
        """The device code and where to enter it; the page reloads until the code is approved."""
        return self._render(
            "device.html",
            title=f"Connect {parties.provider.name}",
            parties=parties,
            scopes=_described(consent.scopes),
            user_code=device.user_code,
            address=device.verification_uri,
            complete=device.verification_uri_complete or device.verification_uri,
            refresh=5,
        )

    def confirm(self, *, parties: Parties, subject: str, code: Secret) -> str:
        """The confirm code, for the program that has no page to return to."""
        title, shown = f"Almost done at {parties.provider.name}", code.reveal()
        return self._render("confirm.html", title=title, parties=parties, subject=subject, code=shown)

    def install(self, *, provider: str, start_url: str | None) -> str:
        """Where to begin, for an install that began at the provider."""
        title = f"One step to connect {provider}"
        return self._render("install.html", title=title, provider=provider, start_url=start_url)

    def choose(self, *, parties: Parties, options: tuple[AccountOption, ...], link: str, csrf: str) -> str:
        """The choice between the accounts that the grant reaches."""
        return self._render(
            "choose.html",
            title=f"Choose an account at {parties.provider.name}",
            parties=parties,
            options=options,
            link=link,
            csrf=csrf,
        )

    def login(self, *, host: str, tenant: str, step_up: bool, command: CommandStart | None, csrf: str) -> str:
        """The button that leads people who administer to their issuer's `host`."""
        title = "Log in to Evergrant"
        shown = {"host": host, "tenant": tenant, "step_up": step_up, "command": command, "csrf": csrf}
        return self._render("login.html", title=title, **shown)

    def session(self, *, session: PersonSession, step_up: str, csrf: str) -> str:
        """Who is logged in; `step_up` is where to log in again."""
        return self._render(
            "session.html", title="You are logged in", session=session, step_up=step_up, csrf=csrf
        )

    def not_logged_in(self, failure: Failure) -> str:
        """Why a person who administers wasn't logged in."""
        return self._result("bad", "You are not logged in", failure.detail, code=failure.code.value)

    def logged_out(self) -> str:
        return self._result(
            "good", "You are logged out", "Your issuer may still know you. Close this window."
        )

    def authorize(
        self,
        *,
        client: GatewayClient,
        target: str,
        rights: list[str],
        person: str,
        leads_to: str | None,
        then: str | None,
        csrf: str,
        user_code: str | None = None,
    ) -> str:
        """Whether a client may act for the person. `then` is the provider that the browser goes on to.

        `user_code` is what a client on another device shows, from which nothing leads back.
        """
        name = client.name or "A program without a name"
        shown = {"name": name, "target": target, "rights": rights}
        shown |= {"person": person, "leads_to": leads_to, "user_code": user_code}
        host = urlsplit(client.client_id).netloc if client.kind is ClientKind.DOCUMENT else None
        title = f"Let “{name}” act for you?"
        return self._render(
            "authorize.html", title=title, kind=client.kind.value, host=host, then=then, csrf=csrf, **shown
        )

    def enter_code(self) -> str:
        """Takes the code that a program shows on a device without a browser."""
        return self._render("enter_code.html", title="Enter a program's code")

    def device_decided(self, *, allowed: bool) -> str:
        """After the decision: the program on the other device learns it by itself."""
        if not allowed:
            return self._result("bad", "The program was not let in", "You can close this window.")
        text = "Go back to it: it goes on by itself within seconds. You can close this window."
        return self._result("good", "The program is let in", text)

    def me(
        self,
        *,
        person: str,
        accounts: Sequence[OwnAccount],
        programs: Sequence[OwnProgram],
        approvals: Sequence[OwnApproval] | None,
        decides_elsewhere: bool,
        said: str | None,
        query: str,
        now: datetime,
        csrf: str,
    ) -> str:
        """What is connected for a person, what acts for them, and what waits for their decision.

        `approvals` None: nobody who decides is logged in; with `decides_elsewhere` there is a login for that.
        """
        shown = {"accounts": accounts, "programs": programs, "said": said, "query": query, "csrf": csrf}
        shown |= {"approvals": approvals, "decides_elsewhere": decides_elsewhere}
        return self._render("me.html", title="Your connections", person=person, now=now, **shown)

    def my_connection(
        self, *, account: OwnAccount, uses: Sequence[OwnUse], query: str, now: datetime, csrf: str
    ) -> str:
        """Who used one of a person's connections, and the button that ends it."""
        shown = {"account": account, "uses": uses, "query": query, "csrf": csrf, "now": now}
        return self._render("my_connection.html", title=account.provider.name, **shown)

    def my_approval(
        self, *, decision: OwnDecision, step_up: str | None, query: str, now: datetime, csrf: str
    ) -> str:
        """All that a person decides about, and the buttons. `step_up`: where to log in again before."""
        shown = {"decision": decision, "step_up": step_up, "query": query, "csrf": csrf, "now": now}
        return self._render("my_approval.html", title=decision.approval.title, **shown)

    def not_shown(self, failure: Failure) -> str:
        """Why a person doesn't see the page of their connections."""
        shown = {"then": failure.repair, "code": failure.code.value}
        return self._result("bad", "This page can't be shown", failure.detail, **shown)

    def not_authorized(self, failure: Failure) -> str:
        """Why the person's browser isn't led back to the client that sent it."""
        shown = {"then": failure.repair, "code": failure.code.value}
        return self._result("bad", "This program was not let in", failure.detail, **shown)

    def fragment(self, *, provider: str) -> str:
        """Posts the URL's fragment to the callback with the only script of the pages."""
        return self._render("fragment.html", title=f"Connecting {provider}", script=_FRAGMENT_SCRIPT)

    def pending(self, *, parties: Parties) -> str:
        """Shown while a worker exchanges the code."""
        text = "Almost done. This page reloads every two seconds."
        return self._result("wait", f"Connecting {parties.provider.name}", text, parties=parties, refresh=2)

    def connected(
        self, *, parties: Parties, subject: str, account: str | None, scopes: tuple[str, ...]
    ) -> str:
        """Who connected, and what was granted. `account` is the subject's at the provider, if it is known."""
        facts = [("For", subject), ("Used by", parties.app.name), ("Integration", parties.integration.name)]
        if account is not None:
            facts.insert(1, ("Account", account))
        title, text = f"{parties.provider.name} is connected", "You can close this window."
        return self._result("good", title, text, parties=parties, facts=facts, scopes=_described(scopes))

    def declined(self, *, parties: Parties, reference: str) -> str:
        text = f"{parties.provider.name} says that access was declined, and nothing was stored."
        app = parties.app.name
        then = (
            f"If you change your mind, connect again in {app}. If you agreed there, tell the admin of {app}."
        )
        title, code = f"{parties.provider.name} is not connected", ErrorCode.CONSENT_DENIED.value
        return self._result("bad", title, text, parties=parties, then=then, code=code, reference=reference)

    def failed(self, failure: Failure, way: WayOut | None = None) -> str:
        """What happened and what the subject does next, without values of the request or words of the
        provider."""
        way = way or WayOut()
        return self._result(
            "bad",
            "This didn't work",
            what_happened(failure, way),
            parties=way.parties,
            then=next_step(failure, way),
            back=way.back,
            for_admins=words_for_admins(failure),
            code=failure.code.value,
            reference=failure.context.get("reference", ""),
        )

    def _result(self, mark: str, title: str, text: str, **values: Any) -> str:
        """`then` is the next step, `back` the app's page where it begins.

        `reference` leads an admin to the record of a failure. `refresh` is the time in seconds after which
        the page is loaded again; 0: never.
        """
        absent = dict.fromkeys(
            ("parties", "facts", "scopes", "then", "back", "code", "reference", "for_admins")
        )
        shown = {"mark": mark, "title": title, "text": text, "refresh": 0}
        return self._render("result.html", **{**absent, **shown, **values})

    def home(self, *, lost: bool = False, near: str = "") -> str:
        """What this server is, and where to go; `lost`: at an address that it doesn't have."""
        title = "There is nothing here" if lost else "This is Evergrant"
        return self._render("home.html", title=title, lost=lost, near=near)

    def reference(self, *, sections: list[tuple[str, list[dict[str, str]]]], version: str, url: str) -> str:
        """The routes, by what they are about, and the failure table. `url` is the server's own."""
        shown = {"sections": sections, "failures": FAILURES, "version": version, "url": url}
        return self._render("reference.html", title="Evergrant API", **shown)

    def _render(self, template: str, **values: Any) -> str:
        return _TEMPLATES.get_template(template).render(values)


def _described(scopes: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(_describe_scope(scope), scope) for scope in scopes]


def _describe_scope(scope: str) -> str:
    """The description of a well-known scope, else its name as words."""
    known = _SCOPE_DESCRIPTIONS.get(scope.lower())
    if known is not None:
        return known
    name = scope.rstrip("/").rsplit("/", 1)[-1] if "://" in scope else scope
    words = " ".join(part for part in re.split(r"[\s._:/\-]+", name) if part)
    return words[:1].upper() + words[1:] if words else scope
