"""What activities of every feature use: provider contexts, transactions, failures, heartbeats, the clock.

Owns the mapping of failures to Temporal's retries (`temporal`, and nowhere else). Doesn't own any
activity, and imports no feature.
"""
