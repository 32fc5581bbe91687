"""A browser as a command: `python -m tests.fakes.platform.browser URL` logs in and allows all it is asked."""

import asyncio
import sys

from examples.demo.subject import Subject


async def main(url: str) -> None:
    async with Subject("sam", "a-password") as subject:
        await subject.consent(url)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
