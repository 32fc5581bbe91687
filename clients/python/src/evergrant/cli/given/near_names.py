"""What isn't there, by its kind: the name that was meant, or how an admin lets the app use it."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Any

from evergrant.cli.start.lines import line_to_copy
from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant

_MOST = 500
_OF_AN_APP = {"permit": "permits ls", "key": "apps keys ls", "credential": "apps credentials ls"}


def name_what_is_missing(client: Evergrant, error: EvergrantError) -> None:
    """Say which name of the call doesn't exist, for an admin; for others, which permit would be needed."""
    listed: dict[str, Callable[[], Iterable[Any]]] = {
        "app": client.apps,
        "integration": client.integrations,
        "webhook": client.webhooks,
        "issuer": client.trusted_issuers,
    }
    for kind, names_of in listed.items():
        name = error.context.get(kind)
        if not isinstance(name, str):
            continue
        try:
            known = [found.name for found in islice(names_of(), _MOST)]
        except EvergrantError:
            _name_the_permit(error)
            return
        if not known:  # to an app without the action admin
            _name_the_permit(error)
            return
        if name in known:
            continue
        near = get_close_matches(name, known, n=1)
        error.detail = f"there is no {kind} {name}"
        error.repair = f"Did you mean {near[0]}?" if near else f"evergrant {kind}s ls lists them."
        return
    for kind, list_them in _OF_AN_APP.items():
        if isinstance(name := error.context.get(kind), str) and (app := error.context.get("app")):
            error.detail = f"{app} has no {kind} {name}"
            error.repair = f"evergrant {list_them} {app} lists them."


def _name_the_permit(error: EvergrantError) -> None:
    integration, subject = error.context.get("integration"), error.context.get("subject")
    if isinstance(integration, str) and isinstance(subject, str):
        command = line_to_copy("evergrant", "apps", "permit", "APP", integration, "--subject", subject)
        error.repair = f"Check the names. If the app lacks a permit, an admin gives it: {command}"


def note_missing_integration(client: Evergrant, name: str) -> None:
    """Say on stderr that an integration isn't there yet, which is no failure."""
    if "*" in name:
        return
    try:
        known = [found.name for found in islice(client.integrations(), _MOST)]
    except EvergrantError:
        return
    if known and name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"evergrant: there is no integration {name} yet{meant}", file=sys.stderr)
