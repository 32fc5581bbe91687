"""`evergrant providers`: the catalogue, the tenant's own definitions, and a checkout's own commands.

`check` and `try` run in a process of their own; nothing of the server is imported.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.api.models import ProviderVersion
from evergrant.cli.arguments import InputFile, read_object
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, Row, row_of, show_one, show_rows
from evergrant.errors import BadRequest

_PROVIDERS = ("name", "display_name", "categories", "default_scopes")


_VERSIONS = ("version", "state", "share", "succeeded", "failed", "proposed_by", "decided_by", "reason")


providers = App(name="providers")


@providers.default
@providers.command(name=("ls", "list"))
def list_providers(*, options: Options = DEFAULTS) -> None:
    """List the providers of the catalogue, with this tenant's own definitions."""
    with options.client() as client:
        show_rows((provider.facts for provider in client.providers()), _PROVIDERS, options.output)


@providers.command
def propose(definition: InputFile, /, *, rollout: Path | None = None, options: Options = DEFAULTS) -> None:
    """Propose a provider's definition. A worker checks it, and an admin decides.

    Args:
        definition: A YAML or JSON file with the members of a catalogue file; - reads it from the standard
            input.
        rollout: A YAML or JSON file: shares, stage_s, enough, most_bad.
    """
    stages = read_object(rollout) if rollout else None
    with options.client() as client:
        _show_version(client.propose_provider(read_object(definition), rollout=stages), options)


@providers.command
def own(*, options: Options = DEFAULTS) -> None:
    """List the providers that this tenant has a definition of, each with its newest version."""
    with options.client() as client:
        rows = (_version_row(version) for version in client.own_providers())
        show_rows(rows, ("name", *_VERSIONS), options.output)


@providers.command
def versions(provider: str, /, *, options: Options = DEFAULTS) -> None:
    """List the versions that this tenant proposed, the newest first."""
    with options.client() as client:
        rows = (_version_row(version) for version in client.provider_versions(provider))
        show_rows(rows, _VERSIONS, options.output)


@providers.command
def approve(
    provider: str,
    version: int,
    /,
    *,
    reason: str | None = None,
    accept_hosts: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Approve a checked version.

    Args:
        accept_hosts: You have read the finding that client secrets and tokens would go to new hosts.
    """
    with options.client() as client:
        approved = client.approve_provider(provider, version, reason=reason, accept_hosts=accept_hosts)
        _show_version(approved, options)


@providers.command
def reject(provider: str, version: int, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Reject a checked version."""
    with options.client() as client:
        _show_version(client.reject_provider(provider, version, reason=reason), options)


@providers.command
def roll_back(provider: str, version: int, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Put the version before a staged one back into service."""
    with options.client() as client:
        _show_version(client.roll_provider_back(provider, version, reason=reason), options)


def _version_row(version: ProviderVersion) -> Row:
    findings = [f"{finding.check}: {finding.level}: {finding.detail}" for finding in version.findings]
    return {**row_of(version), "findings": findings}


def _show_version(version: ProviderVersion, options: Options) -> None:
    """The version; in a table without its whole definition."""
    row = _version_row(version)
    if options.output is Format.TABLE:
        row = {name: value for name, value in row.items() if name not in ("document", "rollout")}
    show_one(row, options.output)


_MODULE = ("-P", "-m", "evergrant_server", "providers")  # -P: not that of the working directory
_Arguments = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


@providers.command(name="check")
def check_catalogue(
    checkout: Path = Path(), /, *, sources: bool = False, options: Options = DEFAULTS
) -> None:
    """Check every definition and test vector of the catalogue in a checkout of Evergrant.

    The same as `python -m evergrant_server providers check` there. Exits with 1 when a check fails.
    Reads files only: a running server has read its catalogue at its start.

    Args:
        checkout: The folder of the checkout; by default the working directory.
        sources: List instead what each entry rests on, and when it was changed last.
    """
    output = ("-o", "json") if options.output is not Format.TABLE else ()
    _run(checkout, "check", *(["--sources"] if sources else ()), *output)


@providers.command(name="explain", help_flags=[])
def explain_reply(*arguments: _Arguments, checkout: Path = Path()) -> None:
    """Say what a provider's reply is read as, by which rule, and whose turn it is. --help lists the options.

    The same as `python -m evergrant_server providers explain` in a checkout of Evergrant. Report its output
    where the reading is wrong.

    Args:
        checkout: The folder of the checkout; by default the working directory.
    """
    _run(checkout, "explain", *arguments)


@providers.command(name="try", help_flags=[])
def try_provider(*arguments: _Arguments, checkout: Path = Path()) -> None:
    """Try a provider with your own client: consent, refresh, refusals, revocation. --help lists the options.

    The same as `python -m evergrant_server providers try` in a checkout of Evergrant.

    Args:
        checkout: The folder of the checkout; by default the working directory.
    """
    _run(checkout, "try", *arguments)


def _run(checkout: Path, command: str, *arguments: str) -> None:
    """Run a command of the checkout, with the files that the user names as they are seen from here."""
    root = checkout.resolve()
    if not (root / "evergrant_server" / "__main__.py").is_file():
        raise BadRequest(
            f"{root} is no checkout of Evergrant",
            code="invalid_request",
            repair=f"Name one: evergrant providers {command} {_NAMING[command]}. To see the catalogue: "
            "evergrant providers",
        )
    venv_python = root / ".venv" / "bin" / "python"
    python = str(venv_python) if venv_python.exists() else sys.executable
    environment = {**os.environ, "PYTHONPATH": str(root)}
    sys.stdout.flush()
    # Ctrl-C reaches both processes: the command revokes what it obtained, and this one waits for it
    before = signal.signal(signal.SIGINT, _wait_on)
    try:
        ended = subprocess.run([python, *_MODULE, command, *arguments], env=environment, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    raise SystemExit(ended.returncode)


_NAMING = {
    "check": "FOLDER",
    "explain": "--checkout FOLDER NAME --status 400 --body FILE",
    "try": "--checkout FOLDER NAME",
}


def _wait_on(number: int, frame: FrameType | None) -> None: ...
