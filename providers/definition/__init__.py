"""The definitions of providers: schema, catalogue registry, templates, validation.

Owns how a definition is written, read and checked, and how its template parameters are filled in.
Doesn't send requests (`providers.requests`) and doesn't store tenants' versions (the store).
"""
