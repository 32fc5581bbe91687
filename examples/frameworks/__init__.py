"""Agent frameworks whose tools are those of a subject's MCP server, through the gateway or with `auth()`.

Owns what a user writes for each of them. `make frameworks` runs all, each in an environment of its own.
"""
