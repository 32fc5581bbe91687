"""Replaces keys of tenants and connections, page by page, while others read and write (ADR 0102).

Owns which rows change, and in which order within one transaction. Doesn't own the order of the steps (core,
the workflow `key_rotation`), nor what a key is made of (crypto).
"""
