"""A command line that can't be meant: what is wrong with it, and the help that is about it."""

from datetime import datetime

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

SERVER_COMMANDS = (
    *("dev", "serve", "worker", "doctor", "reconcile", "db", "keys", "tenants", "authority", "openapi"),
)
_FORMS = {
    datetime: "a date with its zone, such as 2027-01-01T00:00:00Z",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def usage_error(error: CycloptsError) -> str:
    """One line, which ends with the command for its help."""
    chain, unused = tuple(error.command_chain or ()), tuple(getattr(error, "unused_tokens", None) or ())
    message = " ".join(str(error).split())
    if isinstance(error, UnknownCommandError) and not chain and unused and unused[0] in SERVER_COMMANDS:
        return f"{unused[0]} is a command of the server: python -m evergrant_server {' '.join(unused)}"
    if isinstance(error, UnusedCliTokensError):
        message = f"{len(unused)} more than the command takes."  # which may be a secret
    if isinstance(error, MissingArgumentError) and error.argument and error.keyword is None:
        message = f"{error.argument.name} is missing"  # the library's words are of an option without a value
    if isinstance(error, CoercionError) and error.msg is None and error.target_type in _FORMS:
        name = error.token.keyword if error.token and error.token.keyword else "an argument"
        message = f"Invalid value for {name}: write {_FORMS[error.target_type]}."
    return f"{message} (See {' '.join(('evergrant', *chain))} --help.)"
