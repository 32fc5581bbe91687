"""Single use."""
