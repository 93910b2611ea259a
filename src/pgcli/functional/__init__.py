"""The mathematics: pure functions of tensors that import torch and nothing else. Import them by module.

Shapes are (N, T): N rows (environments or completions), T actions (steps or tokens), right-padded; once a batch is cut
into single actions, (B,). Functions of single actions take either shape.
"""
