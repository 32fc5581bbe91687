"""Renders the pages. Texts of providers and callers are escaped."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.connections.grant import AccountOption
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure, Repairer
from evergrant_server.core.people.logins import CommandStart
from evergrant_server.core.people.sessions import PersonSession
from evergrant_server.core.secret import Secret

_DIRECTORY = Path(__file__).parent
STYLE = (_DIRECTORY / "static" / "evergrant.css").read_bytes()
_FRAGMENT_SCRIPT = (_DIRECTORY / "static" / "fragment.js").read_text("utf-8")
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


_SAYS_WHAT_TO_DO = (ErrorCode.ACCOUNT_MISMATCH, ErrorCode.SUBJECT_MISMATCH)  # to the subject


class Pages:
    """The templates, compiled once."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_DIRECTORY / "templates"),
            autoescape=True,  # regardless of the file's extension
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def connect(
        self,
        *,
        provider: str,
        integration: str,
        subject: str,
        consent: Consent,
        csrf: str,
        login: str | None = None,
    ) -> str:
        """The requested access, and a button to continue. `login`: where the subject logs in first."""
        return self._render(
            "connect.html",
            title=f"Connect {provider}",
            provider=provider,
            integration=integration,
            subject=subject,
            login=login,
            asking=consent.by.removeprefix("app:"),
            scopes=[(_describe_scope(scope), scope) for scope in consent.all_scopes],
            csrf=csrf,
        )

    def redirecting(self, *, provider: str, url: str) -> str:
        """Redirects by `meta refresh`: `form-action` would apply to every hop of an HTTP redirect."""
        return self._render("leaving.html", title=f"Taking you to {provider}", provider=provider, url=url)

    def device(self, *, provider: str, consent: Consent, device: DeviceCode) -> str:
        """The device code and where to enter it; the page reloads until the code is approved."""
        return self._render(
            "device.html",
            title=f"Connect {provider}",
            provider=provider,
            asking=consent.by.removeprefix("app:"),
            scopes=[(_describe_scope(scope), scope) for scope in consent.scopes],
            user_code=device.user_code,
            address=device.verification_uri,
            complete=device.verification_uri_complete or device.verification_uri,
            refresh=5,
        )

    def confirm(self, *, provider: str, code: Secret) -> str:
        """The confirm code, for the program that has no page to return to."""
        return self._render(
            "confirm.html", title=f"Almost done at {provider}", provider=provider, code=code.reveal()
        )

    def install(self, *, provider: str, start_url: str | None) -> str:
        """Where to begin, for an install that began at the provider."""
        title = f"One step to connect {provider}"
        return self._render("install.html", title=title, provider=provider, start_url=start_url)

    def choose(
        self, *, provider: str, consent: Consent, options: tuple[AccountOption, ...], link: str, csrf: str
    ) -> str:
        """The choice between the accounts that the grant reaches."""
        return self._render(
            "choose.html",
            title=f"Choose an account at {provider}",
            provider=provider,
            asking=consent.by.removeprefix("app:"),
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

    def fragment(self, *, provider: str) -> str:
        """Posts the URL's fragment to the callback with the only script of the pages."""
        return self._render(
            "fragment.html",
            title=f"Connecting {provider}",
            script=_FRAGMENT_SCRIPT,
        )

    def pending(self, *, provider: str) -> str:
        """Shown while a worker exchanges the code."""
        text = "Almost done. This page reloads every two seconds."
        return self._result("wait", f"Connecting {provider}", text, refresh=2)

    def connected(self, *, provider: str) -> str:
        return self._result("good", f"{provider} is connected", "You can close this window.")

    def declined(self, *, provider: str, reference: str) -> str:
        text = "Access was declined, and nothing was stored. You can close this window."
        title, code = f"{provider} is not connected", ErrorCode.CONSENT_DENIED.value
        return self._result("bad", title, text, code=code, reference=reference)

    def failed(self, failure: Failure, *, asking: str | None = None) -> str:
        """The failure's detail and whom to ask, without values of the request or words of the provider.

        `asking`, else in the failure's context, is the app that requested the consent, where it has failed
        for good.
        """
        text = f"{failure.detail} {_whom_to_ask(failure, asking or failure.context.get('asking'))}"
        reference = failure.context.get("reference", "")
        return self._result("bad", "This didn't work", text, code=failure.code.value, reference=reference)

    def _result(
        self, mark: str, title: str, text: str, *, code: str = "", reference: str = "", refresh: int = 0
    ) -> str:
        """`reference` leads an admin to the record of a failure. `refresh` is the time in seconds after
        which the page is loaded again; 0: never."""
        shown = {"mark": mark, "title": title, "text": text, "code": code, "reference": reference}
        return self._render("result.html", **shown, refresh=refresh)

    def reference(self, *, routes: list[dict[str, Any]], version: str) -> str:
        """The routes and the failure table."""
        return self._render(
            "reference.html", title="Evergrant API", routes=routes, failures=FAILURES, version=version
        )

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(values)


def _whom_to_ask(failure: Failure, asking: str | None) -> str:
    """What the subject can do; the failure table addresses apps and admins."""
    if failure.rule.repairer in (Repairer.INTEGRATION_ADMIN, Repairer.PERMIT_ADMIN, Repairer.OPERATOR):
        return f"Ask the admin of {asking or 'the app that sent you'}."
    if asking is not None and failure.code not in _SAYS_WHAT_TO_DO:
        when = "in a few minutes " if failure.rule.repairer is Repairer.TIME else ""
        return f"Ask {asking} {when}for a new link."
    if failure.code in (ErrorCode.NOT_FOUND, ErrorCode.CONSENT_EXPIRED, ErrorCode.CONNECTION_REVOKED):
        return "Ask for a new link."
    return failure.rule.repair


def _describe_scope(scope: str) -> str:
    """The description of a well-known scope, else its name as words."""
    known = _SCOPE_DESCRIPTIONS.get(scope.lower())
    if known is not None:
        return known
    name = scope.rstrip("/").rsplit("/", 1)[-1] if "://" in scope else scope
    words = " ".join(part for part in re.split(r"[\s._:/\-]+", name) if part)
    return words[:1].upper() + words[1:] if words else scope
