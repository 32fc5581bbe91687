"""Evergrant as the authorization server of its gateways: clients, codes, families and their tokens. Pure.

Doesn't own how apps prove their identity (`core.access`), nor how requests are answered (api).
"""
