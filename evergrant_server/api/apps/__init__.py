"""`/v1/apps`: apps, their API keys and permits, and the first admin; `/v1/access`: who reaches what.

Doesn't own authentication (http) or what a permit allows (policy).
"""
