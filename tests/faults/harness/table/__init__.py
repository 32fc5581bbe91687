"""The table: a case for each point, fault, rotation and layout of workers; its run, and its verdict.

Owns scenarios, cases and the judge. The worker processes are `workers`' business.
"""
