"""Start it: `python -m examples.authorization_server --data DIR`; one JSON line says it is ready.

The line holds `issuer`, `port`, `pid` and `credentials`, the path of the file (mode 0600) with
the user's password and the key of the control API. With `--tls` it holds `api`, the https URL of the
resource, and `authorities`, the file of the authority that its clients have to trust.
"""

import json
import os
import signal
import sys
from contextlib import ExitStack, suppress
from typing import Any, cast

import django
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from examples.authorization_server.configuration import HOST, Credentials, configure
from examples.authorization_server.options import Options, parse


class Server(ThreadedWSGIServer):
    request_queue_size = 128  # many callers may connect at once


class Handler(WSGIRequestHandler):
    """Django's handler, which also passes the client's connection to the application."""

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), "authorization_server.connection": self.connection}


def _prepare(options: Options, issuer: str, credentials: Credentials) -> None:
    configure(options, issuer, credentials)
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    # Models can be imported only from here on.
    from examples.authorization_server.clients import ensure_user, register

    ensure_user(credentials)
    for client in options.clients:
        register(client)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    options.data.mkdir(parents=True, exist_ok=True)
    credentials = Credentials.of(options.data, options.user)
    try:
        server = Server((HOST, options.port), Handler)
    except OSError as error:
        print(f"can't listen on {HOST}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    issuer = f"http://{HOST}:{server.server_port}"
    _prepare(options, issuer, credentials)
    from django.core.wsgi import get_wsgi_application

    server.set_app(cast("Any", get_wsgi_application()))  # Django types its handler as async, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ready: dict[str, Any] = {
        "issuer": issuer,
        "port": server.server_port,
        "pid": os.getpid(),
        "credentials": str(options.data / "credentials.json"),
    }
    with ExitStack() as stack:
        stack.callback(server.server_close)
        stack.enter_context(suppress(KeyboardInterrupt))  # a reader of the line may send the signal at once
        if options.tls:
            from examples.authorization_server.secure import secure_api

            api = stack.enter_context(secure_api(server, Handler, options.data))
            ready |= {"api": api.url, "authorities": str(api.authorities)}
        print(json.dumps(ready), flush=True)
        server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
