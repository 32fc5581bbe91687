"""Rows of exports and their lines. A line is sealed to a key that the store doesn't have."""
