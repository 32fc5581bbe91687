"""Makes the mistakes, and prints what the first screens said."""

import asyncio
import sys

from tests.e2e.mistakes import first_week  # noqa: F401  # which registers them
from tests.e2e.mistakes.place import MISTAKES, made, placed

LEAST = 24


async def main(words: list[str]) -> int:
    chosen = [mistake for mistake in MISTAKES if not words or any(word in mistake.name for word in words)]
    async with placed() as place:
        silent = await made(place, chosen)
    print(f"{len(chosen) - len(silent)} of {len(chosen)} named their repair on the first screen")
    return 0 if len(silent) <= len(MISTAKES) - LEAST else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
