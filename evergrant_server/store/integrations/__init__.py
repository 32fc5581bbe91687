"""Rows of integrations with their sealed credentials, and of the definitions that tenants add.

Doesn't own the catalogue of providers (providers).
"""
