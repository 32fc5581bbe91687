"""`/v1/agents`: apps that act for people, with a sponsor and an end; and delegations, by which they act.

Doesn't own what an agent may do (permits, policy), its calls that people approve (decisions), nor how it
proves who it is (access, oauth).
"""
