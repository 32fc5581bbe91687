"""Logins of people who administer: who came back from the tenant's issuer, and in which role.

Doesn't own sessions (api) or which group has which role (core).
"""
