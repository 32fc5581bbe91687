"""Tokens where a program can only read a file or a Kubernetes Secret: kept fresh, and deleted in time.

Owns when a place is written and when it is emptied, and the places. Evergrant decides at each lease who gets
a token. Used by `evergrant deliver`.
"""
