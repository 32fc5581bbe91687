"""Questions and answers, what was detected, counts for evidence: what is read of other tables for them.

Owns their tables. Doesn't own records (audit).
"""
