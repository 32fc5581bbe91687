"""Runs a command and turns its failure into one message and an exit status.

0: done, 1: failed with a code, 2: wrong usage or settings, 130: interrupted.
"""

import logging
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from cyclopts import CycloptsError

from evergrant_server.checkout import require_own_packages
from evergrant_server.cli.app import app
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.process_exit import exit_process
from evergrant_server.settings import BadSettings


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit. A failure is one message on standard error."""
    try:
        require_own_packages()
        app(arguments, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        command = " ".join(("python -m evergrant_server", *(error.command_chain or ())))
        _fail(f"invalid_usage: {' '.join(str(error).split())}\n  See: {command} --help", 2)
    except BadSettings as error:
        _fail(f"invalid_settings: {error}", 2)
    except Failure as failure:
        _fail(_failure_message(failure), 1)
    except SystemExit as error:  # granian and --help exit so
        exit_process(error.code if isinstance(error.code, int) else int(error.code is not None))
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except Exception as error:
        _fail(_unexpected_message(error), 1)
    exit_process(0)


def _failure_message(failure: Failure) -> str:
    """Code, detail and repair. The general repair is left out when the detail names the exact one."""
    message = f"{failure.code}: {failure.detail}"
    has_repair = "key_file" in failure.context or "python -m evergrant_server" in failure.detail
    return message if has_repair else f"{message}\n  {failure.rule.repair}"


def _unexpected_message(error: Exception) -> str:
    """An unexpected error's class and place; its text may quote a secret."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return (
        f"{ErrorCode.INTERNAL}: {type(error).__name__} at {where}\n"
        "  Run it again with EVERGRANT_LOG_LEVEL=DEBUG for the traceback, and report it."
    )


def _fail(message: str, status: int) -> NoReturn:
    print(f"evergrant: {message}", file=sys.stderr)
    exit_process(status)
