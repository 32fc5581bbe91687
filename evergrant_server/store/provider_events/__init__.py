"""Provider events."""
