"""The folder this server runs from, and the check that its packages come from there."""

from importlib.util import find_spec
from pathlib import Path

from evergrant_server.settings import BadSettings

ROOT = Path(__file__).resolve().parent.parent


def require_own_packages() -> None:
    """Raise BadSettings when `workflows`, `activities` or `providers` is somebody else's package.

    Other distributions install packages of such names; one found first would be run instead.
    """
    for name in ("workflows", "activities", "providers"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or ROOT not in found.parents:
            where = found.parent if found is not None else "nowhere"
            raise BadSettings(
                f"the package {name!r} comes from {where}, not from Evergrant's checkout: "
                f"start from {ROOT}, and remove the other one from PYTHONPATH or uninstall it"
            )
