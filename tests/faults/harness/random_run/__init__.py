"""The random run: a whole installation under load, faults from a seeded plan, and the checks at its end."""
