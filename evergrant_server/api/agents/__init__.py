"""`/v1/agents`: apps that act for people, with a sponsor and an end.

Doesn't own what an agent may do (permits, policy) nor how it proves who it is (http, oauth).
"""
