"""`evergrant streams`: where the tenant's audit records are sent, such as to a SIEM, and how far each is."""

from typing import Annotated

from cyclopts import App, Parameter

from evergrant.cli.arguments import header_of
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one
from evergrant.cli.verbs import verb

_STREAMS = ("name", "url", "format", "disabled", "unsent", "sent", "failures", "problem", "failing_since")

streams = App(name="streams")

verb(streams, "ls list", "audit_streams", "List the streams of the tenant's audit log.", _STREAMS)
verb(streams, "get", "audit_stream", "Show one stream, and how far it is.")
verb(streams, "delete rm", "delete_audit_stream", "Delete a stream: nothing is sent from then on.")
verb(streams, "rotate", "rotate_audit_stream_secret", "Make a new signing secret and show it, once.")


@streams.command(name="put")
def put_stream(
    name: str,
    url: str,
    /,
    *,
    format: str | None = None,
    header: Annotated[tuple[str, ...], Parameter(name=["--header", "-H"])] = (),
    begin: str | None = None,
    disabled: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Create or change a stream. The signing secret is shown when it is created, and never again.

    Args:
        format: cloudevents (the default), ocsf or otlp.
        header: NAME: VALUE, once for each; sent with every batch. Without any they stay as they are.
        begin: now (the default), or oldest: where a new stream begins.
    """
    headers = dict(header_of(line) for line in header)
    with options.client() as client:
        made = client.put_audit_stream(
            name, url, format=format, headers=headers or None, begin=begin, disabled=disabled
        )
    show_one(made, options.output)
