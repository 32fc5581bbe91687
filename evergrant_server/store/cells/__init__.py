"""Moves of tenants between cells: their rows, and a tenant's rows as they are read, compared and written.

Owns which tables move and what of a row another cell makes anew. Doesn't own when: that are the API of the
source and the worker of the target.
"""
