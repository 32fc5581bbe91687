"""Ratios measured in one run on one machine: what a lease, its audit record and a refresh cost.

Owns the load generator, the bare counterparts that the product is compared with, and the
report. Asserts nothing: a ratio is read by people (docs/benchmarks.md). Everything runs on
loopback, in a temporary folder, for a bounded time.
"""
