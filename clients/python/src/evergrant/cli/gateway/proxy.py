"""`evergrant proxy`: a request to a connection's API through the gateway, as curl would send it."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from evergrant.cli.output import DEFAULTS, Options, argument_error, header_of
from evergrant.cli.start.settings_file import environment
from evergrant.errors import EvergrantError
from evergrant.gateway.clients import gateway_address


class ApiRefused(EvergrantError):
    """The provider's API answered with a status of failure."""

    default_code = "api_refused"
    default_repair = "The answer above is the provider's."


def proxy(
    connection_id: str,
    method: str,
    path: str,
    /,
    *,
    header: Annotated[tuple[str, ...], Parameter(name=["--header", "-H"])] = (),
    data: Annotated[str | None, Parameter(name=["--data", "-d"])] = None,
    include: Annotated[bool, Parameter(name=["--include", "-i"], negative=())] = False,
    gateway_url: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Send a request to a connection's API with its credential, which stays in the gateway.

    Args:
        path: Behind the API's base URL, with the query: /user/repos?per_page=5
        header: NAME: VALUE, once for each.
        data: The body; @FILE reads a file, @- the standard input.
        include: Print status and headers too.
        gateway_url: The gateway's URL; by default EVERGRANT_GATEWAY_URL, or that of evergrant.env.
    """
    headers = [header_of(it) for it in header]
    body = _body(data)
    gateway = gateway_address(gateway_url, allow_plain_http=True, environ=environment(options.url))
    where = f"/{path.removeprefix('/')}"
    with (
        options.client() as client,
        client.proxy(connection_id, gateway_url=gateway) as api,
        api.stream(method, where, headers=headers, content=body) as response,
    ):
        if include:
            print(f"HTTP {response.status_code}")
            for name, value in response.headers.items():
                print(f"{name}: {value}")
            print(flush=True)
        for chunk in response.iter_raw():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    if response.status_code >= 400:
        raise ApiRefused(f"the provider's API answered with {response.status_code}")


def _body(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise argument_error(f"{data[1:]}: {error.strerror}") from None
