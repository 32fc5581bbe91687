"""Clients of the gateways, authorization codes, and families of tokens. All but access tokens, whose own MAC
covers them, are read with authenticators."""
