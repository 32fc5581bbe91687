"""`evergrant clients families` and `evergrant clients end`: what subjects have authorized clients for."""

from evergrant.cli.agents.oauth_clients import clients
from evergrant.cli.output import DEFAULTS, Options, argument_error, row_of
from evergrant.cli.show.tables import show_one, show_rows

_FAMILIES = (
    "id",
    "live",
    "subject",
    "app",
    "client_id",
    "resource",
    "used_at",
    "called_at",
    "end",
    "replays",
)


@clients.command(name="families")
def list_families(
    *,
    app: str | None = None,
    client: str | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """List what subjects have authorized clients for: a family of tokens for each authorization.

    Args:
        app: Those of this app alone.
        client: Those of the client with this client id alone.
        subject: Those of this subject alone.
    """
    with options.client() as api:
        found = api.token_families(app=app, client_id=client, subject=subject)
        show_rows((row_of(it) for it in found), _FAMILIES, options.output)


@clients.command(name="end")
def end_families(
    family: str | None = None,
    /,
    *,
    app: str | None = None,
    client: str | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """End one family of tokens by its id, or all of an app, a client or a subject, and print the counts.

    Args:
        family: The id of a family, fam_….
        app: All of this app.
        client: All of the client with this client id.
        subject: All of this subject.
    """
    given = (app, client, subject) != (None, None, None)
    if (family is None) != given:
        raise argument_error("name one family by its id, or say --app, --client or --subject")
    with options.client() as api:
        if family is not None:
            ended = api.end_token_family(family)
        else:
            ended = api.end_token_families(app=app, client_id=client, subject=subject)
        show_one(row_of(ended), options.output)
