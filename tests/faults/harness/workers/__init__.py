"""Worker processes of the table: forked from one warm process, driven over a socket, with shortened limits.

Imports of the product are in `worker` alone: the fork server loads it after the points are marked.
"""
