"""Questions about the past, and what is noticed by itself: what is asked, counted and raised. Pure.

Owns the thresholds' meaning. Doesn't own where records and answers are (audit, store).
"""
