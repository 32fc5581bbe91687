"""The command line of the authorization server."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SeededClient:
    client_id: str
    client_secret: str
    redirect_uri: str
    grant_type: str = "authorization-code"  # as django-oauth-toolkit writes it


@dataclass(frozen=True)
class Options:
    """Seconds are whole seconds, as django-oauth-toolkit counts them."""

    data: Path
    postgres: str | None
    port: int
    user: str
    access_token_seconds: int
    rotate: bool
    reuse_protection: bool
    grace: int
    device_interval: int
    registration: bool
    implicit: bool
    tls: bool
    clients: tuple[SeededClient, ...]


def seeded_client(text: str) -> SeededClient:
    """Read `ID:SECRET:REDIRECT_URI`; the redirect URI keeps its own colons."""
    parts = text.split(":", 2)
    if len(parts) != 3 or not all(parts):
        raise argparse.ArgumentTypeError("a client is given as ID:SECRET:REDIRECT_URI")
    return SeededClient(*parts)


def parse(argv: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m examples.authorization_server",
        description="django-oauth-toolkit as an authorization server on 127.0.0.1.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder for its database and credentials")
    parser.add_argument("--postgres", help="SOCKET_FOLDER/NAME of an empty database, instead of a file")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes any free port")
    parser.add_argument("--user", default="sam", help="the only user who can log in")
    parser.add_argument("--access-token-seconds", type=int, default=3600)
    parser.add_argument("--rotate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--reuse-protection", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--grace", type=int, default=0, help="seconds for which a rotated refresh token is still accepted"
    )
    parser.add_argument("--registration", action="store_true", help="clients may register themselves")
    parser.add_argument("--implicit", action="store_true", help="allow the implicit grant")
    parser.add_argument("--tls", action="store_true", help="serve the resource on an https URL, too")
    parser.add_argument("--device-interval", type=int, default=5, help="seconds between a device's polls")
    parser.add_argument("--client", type=seeded_client, action="append", default=[], dest="clients")
    known = vars(parser.parse_args(argv))
    return Options(**{**known, "clients": tuple(known["clients"])})
