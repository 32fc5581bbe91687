"""Campaigns: an integration has another client, and many subjects consent to it: order, progress and end.

Doesn't own the waves (`activities.incidents`), nor to which client a consent is (`connections`).
"""
