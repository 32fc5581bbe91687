"""Evergrant's own MCP server, at `/mcp`: what an app may do with connections, as tools of a model.

Owns the tools, their words, and how a person is asked for. Doesn't own what is allowed (policy, by the API's
routes), a call's way to the provider (the proxy), or the protocol (the MCP SDK).
"""
