"""Measures the cost of a lease, its audit record and a refresh, as ratios of one run on one machine.

Owns the load generator, the bare counterparts for the comparison, and the report. Asserts nothing:
docs/benchmarks.md explains how to read a ratio. Everything runs on loopback, in a temporary folder,
for a bounded time.
"""
