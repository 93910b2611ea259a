"""Devices of tensors. One interface: a registered class with `torch`, `note` and `synchronise`.

    device = find("device", config.name)(config, parameters=...)
    device.torch            the torch.device
    device.note             one line for the user
    device.synchronise()    waits for queued work, so that time is measured correctly

Making a device also sets the number of threads, which torch has per process.
"""
