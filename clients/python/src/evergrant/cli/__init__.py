"""The `evergrant` command: what the client can do, from a shell.

Owns words, tables and exit statuses. Does nothing that `Evergrant` can't: each command is one
call of it. Tokens leave through `evergrant token` alone, and never unasked to a terminal.
"""

from evergrant.cli.main import main

__all__ = ["main"]
