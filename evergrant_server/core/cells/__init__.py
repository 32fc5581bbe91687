"""Cells: installations of one operator's between which a tenant can be moved (ADR 0139). Pure."""
