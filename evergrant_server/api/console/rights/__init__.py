"""The console's pages of who may do what: apps with permits and credentials, rules, clients, people.

Doesn't own what they mean (api.apps, api.agents, api.oauth, api.people).
"""
