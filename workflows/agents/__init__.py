"""Agents: the end of what a stopped agent has left.

Owns the order of the steps. Owns neither what is ended (activities) nor the order to stop (api).
"""
