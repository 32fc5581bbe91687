"""Proves a campaign: real processes, an authorization server with two clients, a SIGKILL of the worker."""
