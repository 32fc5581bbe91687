"""Checks for people: a report on the whole catalogue, and a check of one proposed definition.

Owns what `providers check` prints and what an admin reads before approving a definition. Doesn't
decide whether a definition is used (`activities.integrations.definition_rollout`).
"""
