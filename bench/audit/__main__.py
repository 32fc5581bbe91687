"""`python -m bench.audit [--records N] [--postgresql] [--tampered]`: what the log costs; tampered copies."""

import argparse
import asyncio

from bench.audit import costs, tampered

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--records", type=int, default=1_000_000)
parser.add_argument("--postgresql", action="store_true")
parser.add_argument("--tampered", action="store_true")
options = parser.parse_args()
work = tampered.run if options.tampered else costs.run
asyncio.run(work(options.records, on_postgresql=options.postgresql))
