"""`ANY /mcp/{connection}`: a remote MCP server, passed through byte by byte with the credential put in.

Owns the reading of messages for permits and the audit log, the sealing of the server's session ids, and
errors as MCP's clients take them. Doesn't own the call itself (`gateway.proxy`).
"""
