"""Rows of webhooks with their signing secrets, of events and their deliveries.

Doesn't own signing or sending (activities).
"""
