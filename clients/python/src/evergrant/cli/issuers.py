"""`evergrant issuers`: the issuers of workload tokens that the tenant trusts."""

from cyclopts import App

from evergrant.cli.output import DEFAULTS, Options, row_of
from evergrant.cli.show.tables import show_one, show_rows

_ISSUERS = ("name", "kind", "issuer", "keys", "keys_at", "keys_problem")

issuers = App(
    name="issuers", help="Trusted issuers of workload tokens: GitHub Actions, Kubernetes, clouds, SPIFFE."
)


@issuers.command(name=("ls", "list"))
def list_issuers(*, options: Options = DEFAULTS) -> None:
    """List the trusted issuers of the tenant, with the state of their keys."""
    with options.client() as client:
        show_rows((row_of(issuer) for issuer in client.trusted_issuers()), _ISSUERS, options.output)


@issuers.command(name="get")
def get_issuer(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one trusted issuer and the state of its keys."""
    with options.client() as client:
        show_one(row_of(client.trusted_issuer(name)), options.output)


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
        show_one(row_of(client.put_trusted_issuer(name, kind, issuer, jwks_uri=jwks_uri)), options.output)


@issuers.command(name=("delete", "rm"))
def delete_issuer(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Trust an issuer no more. The credentials that name it go too, with the access tokens they got."""
    with options.client() as client:
        client.delete_trusted_issuer(name)
