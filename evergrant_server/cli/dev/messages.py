"""What `dev` prints for the person who started it: where it begins, and what to copy once it is ready."""

import os
import shlex
import sys
from pathlib import Path

from evergrant_server.cli.dev.settings_file import local_url
from evergrant_server.settings import Settings

_OF_A_START = ("port", "gateway_port", "temporal_port", "temporal_ui_port")
READY = "Evergrant is ready."  # the demo and tests wait for this line


def print_beginning(settings: Settings) -> None:
    is_first = not (settings.data_dir / "temporal.db").exists()
    first = "; the first start makes it, with keys and an admin key" if is_first else ""
    print(f"Evergrant starts. Its data is in {_near(settings.data_dir)}{first}.", flush=True)


def print_ready(settings: Settings, client_file: Path | None) -> None:
    """The addresses of pages, and lines to copy into another terminal in this folder."""
    folder = _near(settings.data_dir)
    print(f"\n{READY}\n")
    print(f"  API          {settings.public_url}    reference: {settings.public_url}/docs")
    print(f"  Gateway      {settings.gateway_public_url}    sends apps' calls to providers' APIs")
    print(f"  MCP server   {settings.gateway_public_url}/mcp    the same as tools, for agents")
    print(f"  Console      {settings.public_url}/console    with the key in {folder}/admin.key")
    print(f"  Temporal UI  http://127.0.0.1:{settings.temporal_ui_port}    a workflow for each connection")
    print("               What it holds is sealed, and opened there for who is logged in at the console:")
    print("               docs/guide/operations.md#stories-in-the-temporal-ui")
    print(f"  Data, logs   {folder}; keep a copy of {_near(settings.key_path)}")
    if settings.allow_unbound_consent:
        print("  Unbound      integrations may skip the question who consented (binding: none)")
    print("\nIn another terminal, in this folder:\n")
    if client_file is None:
        key_file = _near(settings.data_dir / "admin.key")
        print(f"  export EVERGRANT_URL={local_url(settings)} EVERGRANT_API_KEY_FILE={key_file}")
    command = _near(Path(sys.executable).with_name("evergrant"))
    _print_command(f"{command} init", "five questions, then a program that leases a token")
    data_dir = "" if settings.data_dir == Path(".evergrant").absolute() else f"EVERGRANT_DATA_DIR={folder} "
    _print_command(f"{data_dir}{own_command('doctor')}", "says what is wrong, and what repairs it")
    _print_allowed(settings)
    print("\nCtrl-C stops everything; the next start continues with the same data.", flush=True)


def _print_allowed(settings: Settings) -> None:
    """The hosts that are allowed beside public ones, which the next start remembers; or how to allow one."""
    if settings.egress_allow:
        forget = start_line(settings, EVERGRANT_EGRESS_ALLOW="")
        print(f"\nProviders may also be at {', '.join(settings.egress_allow)}. To forget that: {forget}")
        return
    allow = start_line(settings, EVERGRANT_EGRESS_ALLOW="localhost:9000")
    print(f"\nFor a provider on this machine, at port 9000, start this anew:\n\n  {allow}")


def _print_command(command: str, comment: str) -> None:
    print(f"  {command:<34} # {comment}")


def start_line(settings: Settings, **others: str) -> str:
    """The line that starts `dev` as this one was started, with `others` of its variables."""
    usual = {name: Settings.model_fields[name].default for name in _OF_A_START}
    chosen = {name: getattr(settings, name) for name in _OF_A_START if getattr(settings, name) != usual[name]}
    variables = {f"EVERGRANT_{name.upper()}": str(value) for name, value in chosen.items()}
    if settings.data_dir != Path(".evergrant").absolute():
        variables["EVERGRANT_DATA_DIR"] = _near(settings.data_dir)
    variables |= others
    typed = (f"{name}={shlex.quote(value) if value else ''}" for name, value in variables.items())
    return " ".join((*typed, own_command("dev")))


def own_command(name: str) -> str:
    """A command of the server as this one was started: as a target of make, or without make."""
    python = _near(Path(sys.executable))
    return f"make {name}" if "MAKELEVEL" in os.environ else f"{python} -m evergrant_server {name}"


def _near(path: Path) -> str:
    """The path as it is typed in the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
