"""`providers try`: reads the user's client, runs one trial, prints what it saw and writes the vector."""

import asyncio
import getpass
import json
import os
import sys
import webbrowser
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from evergrant_server import __version__
from evergrant_server.cli.providers import TrialArguments
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.parsing import parse_yaml
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import ClientAuth
from providers.definition.templates import checked_params
from providers.registration.discovery import discover
from providers.requests.sender import Sender
from providers.tools.catalogue_report import VECTORS
from providers.tools.trial.consent import CallbackReceiver, TrialSetup
from providers.tools.trial.observation import Observation
from providers.tools.trial.receivers import LoopbackListener, PastedCallback, is_loopback_uri
from providers.tools.trial.redaction import Redactor
from providers.tools.trial.target import definition_to_try, flow_to_try, require_triable
from providers.tools.trial.token_requests import TokenRequests
from providers.tools.trial.trial import Trial, TrialOptions
from providers.tools.trial.vector import TrialVector
from providers.tools.trial.vector_requests import VectorRequests

_CLIENT_ID, _CLIENT_SECRET = "EVERGRANT_TRY_CLIENT_ID", "EVERGRANT_TRY_CLIENT_SECRET"
_EGRESS_ALLOW = "EVERGRANT_EGRESS_ALLOW"
_GUIDE = "docs/guide/adding-a-provider.md"


def run(name: str | None, arguments: TrialArguments) -> None:
    """Run the trial. Raises Failure; what was seen until then is printed and written."""
    spec = definition_to_try(name, arguments.definition, arguments.issuer)
    flow = flow_to_try(spec, arguments.flow)
    out = arguments.out or Path(f"{spec.name}.observed.yaml")
    if out.exists():
        raise _invalid("out", f"{out} exists already; name another file with --out")
    on_loopback = is_loopback_uri(arguments.redirect_uri)
    params = checked_params(spec, dict(_parameter(text) for text in arguments.param))
    if flow is Flow.AUTHORIZATION_CODE and not arguments.redirect_uri.endswith(":0"):
        _tell(f"Your client at {spec.display_name} needs the redirect URI {arguments.redirect_uri}")
    client_id = arguments.client_id or os.environ.get(_CLIENT_ID) or _ask("Client id: ", input, _CLIENT_ID)
    secret = _client_secret(spec, arguments.client_secret_file)
    now = SystemClock().now()
    integration = Integration(
        tenant=Tenant("trial"),
        id=IntegrationId("int_trial"),
        name=spec.name,
        provider=spec.name,
        client_id=client_id,
        issuer=arguments.issuer,
        params=params,
        client_auth=None if secret else "none",
        created_at=now,
        changed_at=now,
    )
    setup = TrialSetup(spec, integration, secret, arguments.redirect_uri, flow, arguments.scope)
    asyncio.run(_run(arguments, setup, out, on_loopback=on_loopback))


async def _run(arguments: TrialArguments, setup: TrialSetup, out: Path, *, on_loopback: bool) -> None:
    allow = arguments.egress_allow or os.environ.get(_EGRESS_ALLOW, "")
    hosts = tuple(host.strip() for host in allow.split(",") if host.strip())
    egress = Egress(EgressPolicy(hosts, "python -m evergrant_server providers try"))
    setup = await _discovered(egress, setup)
    require_triable(setup.spec, setup.integration)
    redactor = Redactor()
    redactor.learn_personal([setup.integration.client_id, *setup.integration.params.values()])
    report = _Report(redactor, arguments.output)
    async with AsyncExitStack() as stack:
        open_page = _open_page if arguments.browser else _open_nothing
        receiver: CallbackReceiver
        if setup.flow is not Flow.AUTHORIZATION_CODE or not on_loopback:
            receiver = PastedCallback(setup.redirect_uri, open_page, _tell, sys.stdin.readline)
        else:
            listener = LoopbackListener(setup.redirect_uri, open_page, _tell, arguments.wait)
            receiver = await stack.enter_async_context(listener)
            setup = replace(setup, redirect_uri=listener.redirect_uri)
        requests = TokenRequests(setup, Sender(egress), redactor, SystemClock())
        options = TrialOptions(arguments.wrong_secret, arguments.reuse, arguments.second_grant)
        trial = Trial(requests, receiver, options, SystemClock(), _tell, report.note)
        try:
            await trial.run()
        except Failure as failure:
            raise Failure(failure.code, redactor.line(failure.detail)) from None
        finally:
            await _write_vector(requests, out)
            report.finish()


async def _discovered(egress: Egress, setup: TrialSetup) -> TrialSetup:
    """With the endpoints of its issuer. Raises Failure as `discover`."""
    spec, issuer = setup.spec, setup.integration.issuer
    if not spec.discovery:
        return setup
    if issuer is None:
        raise _invalid("issuer", f"{spec.name} has no endpoints of its own; give --issuer")
    endpoints = await discover(egress, issuer)
    return replace(setup, integration=setup.integration.__replace__(endpoints=endpoints))


async def _write_vector(requests: TokenRequests, out: Path) -> None:
    """Write what was seen, for the user alone to read. Nothing was seen: nothing is written."""
    tried = [seen for seen in requests.seen if seen.tokens is not None]
    if not tried:
        return
    now = SystemClock().now()
    source = f"observed with evergrant providers try, {now:%Y-%m-%d}, {__version__}"
    built = VectorRequests(requests.setup, tried[0].facts, _catalogue_vector(requests.setup.spec.name))
    try:
        _write_file(out, await TrialVector(built, requests.seen, requests.redactor, source).text())
    except Failure as failure:
        _tell(f"The vector was not written: {failure.detail}")


def _catalogue_vector(name: str) -> dict[str, Any]:
    """What the catalogue has of this provider already; empty outside of a checkout."""
    file = VECTORS / f"{name}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write_file(out: Path, text: str) -> None:
    try:
        with open(out, "x", encoding="utf-8", opener=_for_the_user_alone) as file:
            file.write(text)
    except OSError as error:
        _tell(f"The vector was not written: {out}: {error.strerror}")
        return
    _tell(f"The vector is in {out}. Read every line of it before you give it away: {_GUIDE}")


def _for_the_user_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Report:
    """Prints the observations: each at once as text, or all of them at the end as JSON."""

    def __init__(self, redactor: Redactor, output: Literal["text", "json"]) -> None:
        self._redactor = redactor
        self._output = output
        self._noted: list[dict[str, Any]] = []

    def note(self, seen: Observation) -> None:
        """Keep an observation, without secrets: providers quote requests in their error names."""
        clean = self._redactor.line
        parts = {
            name: [clean(line) for line in getattr(seen, name)] for name in ("saw", "definition", "differs")
        }
        self._noted.append({"step": seen.step, **parts})
        if self._output == "text":
            print(seen.step)
            for name, lines in parts.items():
                if lines or name == "differs":
                    print(f"  {name:<10}  {'; '.join(lines) or 'nothing'}")
            sys.stdout.flush()

    def finish(self) -> None:
        if self._output == "json":
            print(json.dumps(self._noted, indent=2))


def _client_secret(spec: ProviderSpec, file: Path | None) -> Secret | None:
    """From the file, the environment or a prompt; None for a public client. Raises Failure."""
    if spec.client_auth is ClientAuth.NONE:
        return None
    if file is not None:
        try:
            text = sys.stdin.readline() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise _invalid("client_secret_file", f"{file}: {reason}") from None
    else:
        prompt = "Client secret (not shown; empty for a public client): "
        text = os.environ.get(_CLIENT_SECRET) or _ask(prompt, getpass.getpass, _CLIENT_SECRET)
    return Secret(text.strip()) if text.strip() else None


def _ask(prompt: str, ask: Callable[[str], str], variable: str) -> str:
    if not sys.stdin.isatty():
        raise _invalid(variable, f"there is no terminal to ask for it; set {variable}, or see --help")
    try:
        return ask(prompt).strip()
    except EOFError:
        raise _invalid(variable, "nothing was entered") from None


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise _invalid("param", f"{text[:80]!r} is not NAME=VALUE")
    return name, value


def _open_page(url: str) -> bool:
    """In a thread: some browsers end only when they are closed, and the listener has to go on."""
    Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    return True


def _open_nothing(url: str) -> bool:
    return False


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _invalid(field: str, detail: str) -> Failure:
    return Failure(ErrorCode.INVALID_REQUEST, detail, field=field)
