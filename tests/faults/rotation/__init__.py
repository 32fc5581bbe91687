"""Proves rotations under load: real processes, readers, refreshes, a SIGKILL of each in each step."""
