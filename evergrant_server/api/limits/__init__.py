"""How many requests are answered: limits of leases, and the header fields that name them.

Doesn't own the order in which leases are committed (audit), nor the limits of providers (activities).
"""
