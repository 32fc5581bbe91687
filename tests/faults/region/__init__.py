"""A region is lost whole, under leases and refreshes, and the other one is promoted in its place."""
