"""`make fuzz`: many cases, with a seed that a failure is repeated by."""

import argparse
import sys
import time

from tests.security.fuzz.fuzzer import fuzz


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    begun = time.monotonic()
    counts = fuzz(asked.cases, asked.seed)
    for name, why in counts.failures.items():
        print(f"{name}\n{why}\n")
    print(f"{counts} in {time.monotonic() - begun:.0f} s, seed {asked.seed}: {len(counts.failures)} failures")
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
