"""Proves the breach drill: real processes, a real authorization server, a SIGKILL of each process halfway."""
