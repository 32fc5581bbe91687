"""Grants of other systems as items for `evergrant import`: Nango, Auth0, a table of one's own.

Owns their formats, read from a file row by row. Doesn't own sending them. Rows hold tokens: what is
said about one names its number, and quotes nothing of it.
"""
