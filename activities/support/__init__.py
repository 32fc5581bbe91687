"""What activities of every feature use: provider contexts, transactions, heartbeats, failures, clocks.

Owns the mapping of failures to Temporal's retries (`failures`, and nowhere else). Doesn't own any
activity, and imports no feature.
"""
