"""Verbs that only send one call and show its result: a line each in the modules of their nouns."""

import inspect

from cyclopts import App

from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Row, show_one, show_rows
from evergrant.sync_client import Evergrant


def verb(
    noun: App, names: str, method: str, text: str, columns: tuple[str, ...] = (), *, usual: Row | None = None
) -> None:
    """Give a noun a verb that sends `method` of the client, whose required parameters are its arguments.

    With `columns` the result is a list. `text` is the help.
    """
    required = [
        inspect.Parameter(parameter.name, inspect.Parameter.POSITIONAL_ONLY, annotation=str)
        for parameter in inspect.signature(getattr(Evergrant, method)).parameters.values()
        if parameter.name != "self" and parameter.default is inspect.Parameter.empty
    ]

    def run(*words: str, options: Options = DEFAULTS) -> None:
        with options.client() as client:
            result = getattr(client, method)(*words)
            if columns:
                show_rows(result, columns, options.output, usual=usual)
            elif result is not None:
                show_one(result, options.output)

    last = inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS, annotation=Options)
    vars(run)["__signature__"] = inspect.Signature([*required, last], return_annotation=None)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*required, last)}
    run.__doc__ = text
    noun.command(run, name=names.split())
