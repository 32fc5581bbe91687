"""Cells: what an operator orders about the move of a tenant, and what the other cell may ask for it."""
