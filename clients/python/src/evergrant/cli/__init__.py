"""The `evergrant` command: the client from a shell.

Owns arguments, tables and exit statuses. Each command is one call of `Evergrant`. Tokens are
printed by `evergrant token` alone, and on a terminal only with --show.
"""

from evergrant.cli.main import main

__all__ = ["main"]
