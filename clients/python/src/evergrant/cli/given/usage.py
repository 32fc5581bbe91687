"""A command line that can't be meant: what is wrong with it, and the help that is about it."""

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnusedCliTokensError

SERVER_COMMANDS = (
    *("dev", "serve", "worker", "doctor", "reconcile", "db", "keys", "tenants", "authority", "openapi"),
)


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
    return f"{message} (See {' '.join(('evergrant', *chain))} --help.)"
