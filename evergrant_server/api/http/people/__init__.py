"""Requests of people who administer: which session a request came with."""
