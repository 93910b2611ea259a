"""The widest number type that a device computes in."""

import torch


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on an Apple GPU, which has nothing wider and refuses a tensor of float64."""
    return torch.float32 if device.type == "mps" else torch.float64
