"""`ANY /v1/proxy/{connection}/{path}`: one call, from the caller's request to the provider's response."""
