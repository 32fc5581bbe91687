"""The table: a case for each point, fault, rotation and layout of workers; its run, and the judgement of its end.

Owns scenarios, cases and the judge. The worker processes are `workers`' business.
"""
