"""What connections and refreshes cost on this machine: `python -m bench capacity`.

Owns the measurements behind docs/capacity.md and their tables. Doesn't own the comparisons with other
servers, which are the bench's parts.
"""
