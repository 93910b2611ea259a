"""One flat module a method, each opening with its equation, its paper and how it differs from its neighbours.

They import neither one another nor any environment or policy: what they need to know is in a Rollout.
"""
