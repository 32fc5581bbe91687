"""A side's part of a move between cells (ADR 0139).

Owns the order of the steps and how rows are compared and copied. Doesn't own what of a row another cell makes
anew (`store.cells`), nor what the source answers (`access.moves`).
"""
