"""Moves of tenants between cells."""
