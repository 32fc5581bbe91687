"""Evergrant's own parts as tests run them: in this process, or as processes with their logs kept."""
