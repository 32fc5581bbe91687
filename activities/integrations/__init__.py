"""Activities for integrations: discovery, registration, definition rollout, PAR, OAuth 1.0a.

Owns the order of calls to the provider and the commits that follow. Doesn't own the requests
(`providers`) or the protocol for single-use credentials (`activities.single_use`).
"""
