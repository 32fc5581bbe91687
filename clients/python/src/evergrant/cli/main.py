"""The `evergrant` command: a table of its nouns and verbs, of which the one that is used is loaded.

Exit statuses: 0 done, 1 refused or failed, 2 misused, 130 interrupted. Of `plan`, and `apply --dry-run`, 2 is
that there is something to change: misused they end with 1.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

ABOUT = "Managed OAuth from the shell: connections, tokens, audit."
# each noun: where in `evergrant.cli.commands` its verbs are, and its line in the help
NOUNS: Mapping[str, tuple[str, str]] = {
    "access": ("access:access", "Which app reaches what, through which permit: for admins."),
    "access-requests": (
        "permits:access_requests",
        "Permits that apps ask for, or that are proposed for removal.",
    ),
    "agents": ("agents:agents", "Apps that act for people: who answers for each, and until when."),
    "approvals": (
        "approvals:approvals",
        "Commands that a second admin must approve (EVERGRANT_FOUR_EYES), and agents' calls.",
    ),
    "apps": ("apps:apps", "Consumers of Evergrant, their API keys and credentials."),
    "audit": ("audit:audit", "What happened: records, receipts to check offline, evidence, and a witness."),
    "clients": ("clients:clients", "OAuth clients of the gateway, such as coding agents."),
    "connections": ("connections:connections", "Subjects' grants."),
    "delegations": ("agents:delegations", "Apps that act for one person: who for whom, and its end."),
    "deliver": ("files.deliver:deliver", "Tokens kept fresh in a file, or in Secrets of Kubernetes."),
    "erasures": ("erasures:erasures", "What was erased for good, and how far it has come."),
    "holds": ("erasures:holds", "Legal holds: what may not be erased or pruned."),
    "incident": (
        "incidents:incident",
        "A breach drill, or what follows a leak of keys, and its signed report.",
    ),
    "integrations": ("integrations:integrations", "OAuth clients at providers."),
    "issuers": (
        "credentials:issuers",
        "Trusted issuers of workload tokens: GitHub Actions, Kubernetes, clouds, SPIFFE.",
    ),
    "keys": ("keys:keys", "The keys that seal the tenant's secrets, and rotations of them."),
    "mcp": ("leases:mcp", "MCP servers through the gateway."),
    "campaigns": ("integrations:campaigns", "Subjects consent to another client of an integration."),
    "offboard": ("erasures:offboard", "A person leaves: stop and revoke what is theirs, and its report."),
    "people": ("people:people", "People who administer: where they log in, their roles and sessions."),
    "permits": ("permits:permits", "What apps may do. A deny wins."),
    "providers": ("providers:providers", "The catalogue, and definitions of your own."),
    "streams": ("webhooks:streams", "Streams of the audit log to receivers, such as a SIEM."),
    "questions": ("questions:questions", "Who used what, which tokens were handed out, all of a subject."),
    "subjects": ("erasures:subjects", "Erase a person for good."),
    "webhooks": ("webhooks:webhooks", "Subscriptions to events, and their deliveries."),
}
# each command without verbs, and the first line of its docstring
COMMANDS: Mapping[str, tuple[str, str]] = {
    "apply": (
        "files.apply:apply",
        "Create and change what a folder of YAML files describes. Running it again changes nothing more.",
    ),
    "completion": ("leases:completion", "Print what a shell needs to complete commands and options."),
    "connect": (
        "connections:connect",
        "Begin a connection and print the subject's next step, if there is one.",
    ),
    "detections": (
        "questions:detections",
        "List what was noticed of uses that are unlike those before, the newest first.",
    ),
    "export": (
        "transfer:export_file",
        "Export every live grant to a file, each line sealed to a public key, for import elsewhere.",
    ),
    "export-key": (
        "transfer:export_key",
        "Make a key pair for `export --to PUBLIC` and `import --key PRIVATE`. The keys stay on this machine.",
    ),
    "import": (
        "transfer:import_file",
        "Import existing grants from a file. Running it again goes on where it was, "
        "and changes nothing else.",
    ),
    "init": (
        "init:init",
        "Make an integration, an app, its permit and key, and a program that leases a token.",
    ),
    "login": (
        "people:login",
        "Log in as a person, in a browser on this machine. The session is kept in a file of mode 0600.",
    ),
    "logout": ("people:logout", "End the session of `evergrant login`, and forget it."),
    "overview": (
        "connections:overview",
        "Show what needs somebody and whose turn it is, what ends soon, and how each integration is.",
    ),
    "plan": (
        "files.apply:plan",
        "Show what `apply` would change. Exits with 0 if nothing, with 2 if something.",
    ),
    "proof": (
        "leases:proof",
        "Print a DPoP header for one request with a token that is bound to a key (RFC 9449).",
    ),
    "proxy": (
        "leases:proxy",
        "Send a request to a connection's API with its credential, which stays in the gateway.",
    ),
    "token": ("leases:token", "Print an access token: in full to a pipe or a file, hidden on a terminal."),
    "whoami": ("people:whoami", "Show who you are, in which role, and until when."),
}
ALIASES = {"lease": "token"}
_PLANS = ("plan", "apply")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Always ends in SystemExit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in ([], ["--help"], ["-h"]):
        print(root_help())
        sys.exit(0)
    sys.exit(_status(words))


def root_help() -> str:
    """The help of the whole command, for which no command is loaded."""
    described = {name: line.replace("`", "") for name, (_, line) in {**NOUNS, **COMMANDS}.items()}
    width = max(map(len, described)) + 2
    lines = (f"  {name:<{width}}{line}" for name, line in sorted(described.items()))
    hint = "evergrant COMMAND --help says more, evergrant --version which version this is."
    return "\n".join(("Usage: evergrant COMMAND", "", ABOUT, "", *lines, "", hint))


def _status(arguments: list[str]) -> int:
    from pathlib import Path

    from cyclopts import CycloptsError

    from evergrant.cli.arguments import usage_error
    from evergrant.cli.options import show_error
    from evergrant.errors import EvergrantError
    from evergrant.grant_files import file_error

    try:
        build_app(arguments[0])(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"evergrant: usage: {usage_error(error)}", file=sys.stderr)
        return 1 if arguments[0] in _PLANS else 2
    except EvergrantError as error:
        show_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe; without this the interpreter fails again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        show_error(file_error(Path(str(error.filename or ".")), error))
        return 1
    return 0


def build_app(used: str | None = None) -> "App":
    """The whole command; the help of the `used` one, or of all, has examples."""
    from importlib.metadata import version

    from cyclopts import App

    from evergrant.cli.examples import add_examples

    app = App(name="evergrant", help=ABOUT, version=version("evergrant"))
    for name, (place, line) in NOUNS.items():
        app.command(f"evergrant.cli.commands.{place}", name=name, help=line)
    for name, (place, _) in COMMANDS.items():
        names = (name, *(alias for alias, meant in ALIASES.items() if meant == name))
        app.command(f"evergrant.cli.commands.{place}", name=names)
    add_examples(app, ALIASES.get(used or "", used))
    return app
