"""The folder that the server runs from, and the check that its packages come from it."""

from importlib.util import find_spec
from pathlib import Path

from evergrant_server.settings import BadSettings

ROOT = Path(__file__).resolve().parent.parent


def require_own_packages() -> None:
    """Raise BadSettings when `workflows`, `activities` or `providers` is another distribution's package.

    Other distributions install packages with these names; Python would run the one found first.
    """
    for name in ("workflows", "activities", "providers"):
        spec = find_spec(name)
        place = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if place is None or ROOT not in place.parents:
            where = place.parent if place is not None else "nowhere"
            raise BadSettings(
                f"the package {name!r} comes from {where}, not from Evergrant's checkout: "
                f"start from {ROOT}, and remove the other one from PYTHONPATH or uninstall it"
            )
