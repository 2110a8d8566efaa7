"""Measured memory of this process and its device."""

import resource

import torch


def peak_bytes() -> int:
    """Peak bytes since the process began: allocated device memory on a GPU rank, resident host memory on a CPU rank."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_used_bytes() -> int | None:
    """Bytes in use on this rank's device, by whatever process and library; None on a CPU rank."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
