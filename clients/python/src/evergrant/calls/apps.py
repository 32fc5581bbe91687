"""An admin's calls for apps: the consumers of Evergrant."""

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    require_success,
    without_none,
)
from evergrant.models import App

_APP = object_parser("app", App)


def apps() -> Call[Page[App]]:
    """The apps of the tenant."""
    return Call("GET", "/v1/apps", page_parser("app", App))


def app(name: str) -> Call[App]:
    """One app of the tenant."""
    return Call("GET", path_of("apps", name), _APP)


def put_app(
    name: str, *, return_to: tuple[str, ...] = (), lease_limit: int | None = None, disabled: bool = False
) -> Call[App]:
    """Create an app, or replace all of one. Requests of a disabled app are refused at once.

    `return_to`: where a browser may come back to. `lease_limit`: leases in a minute; None takes the server's.
    """
    body = {"disabled": disabled, "return_to": list(return_to), **without_none(lease_limit=lease_limit)}
    return Call("PUT", path_of("apps", name), _APP, body=body)


def delete_app(name: str) -> Call[None]:
    """Delete an app with its keys and permits. Connections stay: other apps may use them."""
    return Call("DELETE", path_of("apps", name), require_success)
