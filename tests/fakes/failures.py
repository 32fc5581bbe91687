"""What a call is refused with."""

import pytest

from evergrant_server.core.errors import ErrorCode, Failure


def fails(
    code: ErrorCode, why: str | None = None, *, field: str | None = None
) -> "pytest.RaisesExc[Failure]":
    """The block raises a Failure with this code, a text that matches `why`, and `field` if it is given."""

    def same(error: Failure) -> bool:
        return error.code is code and (field is None or error.context.get("field") == field)

    return pytest.raises(Failure, match=why, check=same)
