"""A request that needs more memory than there is: told from other errors, and what it held given back."""

import gc
import traceback

import torch

# How allocators without a type of error of their own say it: the CPU's, CUDA's runtime, cuBLAS and cuDNN.
_WORDS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that host or device memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def free_memory_of(error: BaseException) -> None:
    """Drops what the frames that the error came through still hold, then the allocator's cache.

    As long as the error lives, so do the tensors in those frames: emptying the cache alone would free next to nothing.
    """
    part: BaseException | None = error
    while part is not None:
        traceback.clear_frames(part.__traceback__)
        part = part.__cause__ or part.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
