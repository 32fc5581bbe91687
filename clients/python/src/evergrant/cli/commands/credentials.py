"""`evergrant apps credentials` and `evergrant issuers`: how apps prove their identity, trusted issuers."""

from pathlib import Path

from cyclopts import App

from evergrant.cli.arguments import name_and_value, read_text
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one
from evergrant.cli.verbs import verb
from evergrant.grant_files import write_private_file
from evergrant.identity.certificate import thumbprint
from evergrant.identity.private_key import new_private_key, public_jwk

_CREDENTIALS = ("name", "method", "created_at", "last_used_at", "id")

credentials = App(name="credentials", help="Keys and certificates, for which apps get short-lived tokens.")

verb(
    credentials,
    "ls list",
    "credentials",
    "List the credentials of an app, with their last use.",
    _CREDENTIALS,
)
verb(
    credentials,
    "rm delete",
    "delete_credential",
    "Delete a credential of an app. Requests with its tokens are refused at once.",
)


@credentials.command
def new_key(file: Path, /) -> None:
    """Make a key pair for an app, in a new file. It stays on this machine."""
    write_private_file(file, new_private_key() + "\n")
    print(f"private: {file} (keep it)")


@credentials.command
def put(
    app: str, name: str, /, *, key: tuple[Path, ...], alg: str | None = None, options: Options = DEFAULTS
) -> None:
    """Register the public half of an app's key. Replacing a credential ends its tokens at once.

    Args:
        key: File with a key, as a JWK or in PEM; of a private one only the public half is sent.
        alg: How the app signs; by default as the JWK says, ES256 to ES512 by curve, Ed25519, or PS256.
    """
    keys = [public_jwk(read_text(file), alg) for file in key]
    with options.client() as client:
        made = client.put_credential(app, name, "private_key_jwt", {"jwks": {"keys": keys}})
        show_one(made, options.output)


@credentials.command
def put_certificate(
    app: str,
    name: str,
    /,
    *,
    ca: Path,
    dns: str | None = None,
    uri: str | None = None,
    ip: str | None = None,
    email: str | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Register the name that an app's certificates have, and the authority that issues them. Give one name.

    Args:
        ca: File with the authority's certificate, PEM.
        dns: The subject alternative name, a DNS name.
        uri: The subject alternative name, a URI.
        ip: The subject alternative name, an IP address.
        email: The subject alternative name, an email address.
        subject: The whole subject, as RFC 4514 writes it.
    """
    names = {"san_dns": dns, "san_uri": uri, "san_ip": ip, "san_email": email, "subject_dn": subject}
    parameters = {"ca": read_text(ca), **{kind: value for kind, value in names.items() if value is not None}}
    _put(app, name, "tls_client_auth", parameters, options)


@credentials.command
def pin_certificate(app: str, name: str, certificate: Path, /, *, options: Options = DEFAULTS) -> None:
    """Register one certificate (a file, PEM) by its SHA-256, of any issuer."""
    pinned = {"thumbprint": thumbprint(read_text(certificate))}
    _put(app, name, "self_signed_tls_client_auth", pinned, options)


@credentials.command
def put_svid(
    app: str,
    name: str,
    spiffe_id: str,
    /,
    *,
    issuer: str | None = None,
    bundle: Path | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Register an app's SPIFFE ID, for its X.509-SVIDs. Give the issuer or the bundle.

    Args:
        issuer: The trusted issuer that is its trust domain; Evergrant reads its bundle again and again.
        bundle: File with the certificates of the trust domain's authorities, PEM.
    """
    sources = {"issuer": issuer, "bundle": None if bundle is None else read_text(bundle)}
    parameters = {kind: value for kind, value in sources.items() if value is not None}
    _put(app, name, "x509_svid", {"spiffe_id": spiffe_id, **parameters}, options)


def _put(app: str, name: str, method: str, parameters: dict[str, str], options: Options) -> None:
    with options.client() as client:
        show_one(client.put_credential(app, name, method, parameters), options.output)


@credentials.command
def put_workload(
    app: str,
    name: str,
    /,
    *,
    issuer: str,
    claim: tuple[str, ...],
    audience: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Let an app in by the tokens of its platform. Replacing a credential ends its tokens at once.

    Args:
        issuer: The name of a trusted issuer (evergrant issuers).
        claim: A claim and its only value, NAME=VALUE; all that are given are required.
        audience: Of an issuer of the kind azure: the id of the application there that stands for Evergrant.
    """
    claims = dict(name_and_value(text) for text in claim)
    parameters = {"issuer": issuer, "claims": claims} | ({"audience": audience} if audience else {})
    with options.client() as client:
        show_one(client.put_credential(app, name, "workload_identity", parameters), options.output)


_ISSUERS = ("name", "kind", "issuer", "keys", "keys_at", "keys_problem")

issuers = App(name="issuers")

verb(
    issuers,
    "ls list",
    "trusted_issuers",
    "List the trusted issuers of the tenant, with the state of their keys.",
    _ISSUERS,
)
verb(issuers, "get", "trusted_issuer", "Show one trusted issuer and the state of its keys.")
verb(
    issuers,
    "delete rm",
    "delete_trusted_issuer",
    "Trust an issuer no more. The credentials that name it go too, with the access tokens they got.",
)


@issuers.command(name="put")
def put_issuer(
    name: str, kind: str, issuer: str, /, *, jwks_uri: str | None = None, options: Options = DEFAULTS
) -> None:
    """Trust an issuer, or change where its keys are. Alone it lets no app in: a credential has to name it.

    Args:
        kind: github_actions, kubernetes, gcp, azure, aws, spiffe or oidc.
        issuer: The `iss` of its tokens, exactly; of a trust domain spiffe:// and its name.
        jwks_uri: Where its keys are; by default where its metadata says. Of a trust domain: its bundle.
    """
    with options.client() as client:
        show_one(client.put_trusted_issuer(name, kind, issuer, jwks_uri=jwks_uri), options.output)
