"""`evergrant audit`: records of what happened, and evidence for an auditor."""

from cyclopts import App

from evergrant.cli.commands.questions import evidence
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_rows

audit = App(name="audit")
audit.command(evidence)

_RECORDS = ("seq", "shard", "at", "action", "by", "detail")


@audit.default
def show(connection_id: str | None = None, /, *, options: Options = DEFAULTS) -> None:
    """Show the audit records of a connection, or of the whole tenant."""
    with options.client() as client:
        show_rows(client.audit(connection_id), _RECORDS, options.output)
