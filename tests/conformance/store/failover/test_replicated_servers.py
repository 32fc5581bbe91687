"""The two servers that tests fail over, and back."""

import asyncpg
import pytest

from tests.fakes.patience import eventually
from tests.fakes.postgresql.replicated import PostgresServer, replicated, streaming


async def _numbers(server: PostgresServer) -> list[int]:
    connection = await server.connect()
    try:
        return [row["number"] for row in await connection.fetch("SELECT number FROM kept ORDER BY number")]
    finally:
        await connection.close()


@pytest.mark.soak
async def test_a_standby_takes_over_from_a_killed_primary_which_comes_back_as_its_standby():
    async with replicated(synchronous=True) as (first, second):
        await first.execute(
            "CREATE TABLE kept (number int)",
            "SET synchronous_commit = remote_apply",  # the standby shows it, too
            "INSERT INTO kept VALUES (1)",
        )
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await second.execute("INSERT INTO kept VALUES (2)")
        first.pause()
        await second.promote()
        await second.execute("INSERT INTO kept VALUES (2)")
        first.resume()
        await first.execute("SET synchronous_commit = local", "INSERT INTO kept VALUES (3)")  # the split
        first.kill()
        await first.rewind_to(second)
        await first.start()
        await streaming(second)
        assert await eventually(lambda: _numbers(first), lambda numbers: 2 in numbers) == [1, 2]
        second.kill()
        await first.promote()
        await first.execute("INSERT INTO kept VALUES (4)")
        assert await _numbers(first) == [1, 2, 4]
