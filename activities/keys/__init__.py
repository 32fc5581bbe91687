"""Rotations of keys: page after page until a step is done, and which keys are due by their age.

Doesn't own when a page follows another, or a pause (the workflow), nor which rows change (store).
"""
