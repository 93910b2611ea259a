"""One flat module per method, each opening with its equation, its paper and how it differs from its neighbours.

They import neither one another nor any environment or policy: all that they need is in a Rollout.
"""
