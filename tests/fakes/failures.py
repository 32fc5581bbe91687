"""What a call is refused with."""

import pytest

from evergrant_server.core.errors import ErrorCode, Failure


def fails(code: ErrorCode, why: str | None = None) -> "pytest.RaisesExc[Failure]":
    """The block raises a Failure with this code, and with a text that matches `why`."""
    return pytest.raises(Failure, match=why, check=lambda error: error.code is code)
