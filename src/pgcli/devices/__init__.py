"""Where tensors live. One interface: a registered class with `torch`, `note` and `synchronise`.

    device = find("device", config.name)(config, parameters=...)
    device.torch            the torch.device
    device.note             one line for the user
    device.synchronise()    waits for queued work, so that a clock tells the truth

Whoever makes a device also sets the number of threads: torch has one such number per process.
"""
