"""The gateway's process, and key files for processes that must not hold all keys."""
