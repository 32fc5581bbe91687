"""Client auth."""
