"""`evergrant apps credentials`: how apps prove their identity at the token endpoint."""

from pathlib import Path

from cyclopts import App

from evergrant.cli.output import DEFAULTS, Options, read_text, row_of, show_one, show_rows
from evergrant.grant_files import write_private_file
from evergrant.identity.private_key import new_private_key, public_jwk

_CREDENTIALS = ("name", "method", "created_at", "last_used_at", "id")

credentials = App(name="credentials", help="Keys of apps' own, for which they get short-lived tokens.")


@credentials.command(name=("ls", "list"))
def list_credentials(app: str, /, *, options: Options = DEFAULTS) -> None:
    """List the credentials of an app, with their last use."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.credentials(app)), _CREDENTIALS, options.output)


@credentials.command
def new_key(file: Path, /) -> None:
    """Make a key pair for an app, in a new file. It stays on this machine."""
    write_private_file(file, new_private_key() + "\n")
    print(f"private: {file} (keep it)")


@credentials.command
def put(
    app: str,
    name: str,
    /,
    *,
    key: tuple[Path, ...],
    alg: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Register the public half of an app's key. Replacing a credential ends its tokens at once.

    Args:
        key: File with a key, as a JWK or in PEM; of a private one only the public half is sent.
        alg: How the app signs; by default as the JWK says, ES256 to ES512 by curve, Ed25519, or PS256.
    """
    keys = [public_jwk(read_text(file), alg) for file in key]
    with options.client() as client:
        made = client.put_credential(app, name, "private_key_jwt", {"jwks": {"keys": keys}})
        show_one(row_of(made), options.output)


@credentials.command(name=("rm", "delete"))
def delete(app: str, name: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete a credential of an app. Requests with its tokens are refused at once."""
    with options.client() as client:
        client.delete_credential(app, name)
