"""How models are executed: the attention kernel, compilation, decoding in tiles. Whatever the user states wins."""

from dataclasses import dataclass

from planner.errors import PlanRequestError
from planner.plan import AttentionBackend, Compilation, Decoding, Mode, PlanRequest

_FASTEST_FIRST = (AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.NATIVE)
"""On one H100, head dim 128: cuDNN 640 TFLOP/s, flash 371. Where a kernel does not run, the rank takes the next."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How models are executed; a group's step time and peak are of this.

    Attributes:
        attention_backends: kernels in the order in which a rank tries them.
    """

    attention_backends: tuple[AttentionBackend, ...]
    compile: Compilation
    decoding: Decoding


def choose_execution(
    request: PlanRequest, *, device: str, sequence_degree: int, denoisers_by_parts: bool = False
) -> Execution:
    """Resolves them for some degrees. What is not stated decodes whole frames.

    Raises:
        PlanRequestError: as `choose_attention` and `choose_compilation`.
    """
    return Execution(
        choose_attention(request, device=device, sequence_degree=sequence_degree),
        choose_compilation(
            request, device=device, sequence_degree=sequence_degree, denoisers_by_parts=denoisers_by_parts
        ),
        Decoding.WHOLE if request.decoding == "auto" else Decoding(request.decoding),
    )


def choose_attention(request: PlanRequest, *, device: str, sequence_degree: int) -> tuple[AttentionBackend, ...]:
    """Kernels in the order in which a rank tries them; torch's own choice on CPUs and in mode `memory`.

    Also where ranks share a call's tokens: only there are masks fitted to a rank's part.

    Raises:
        PlanRequestError: cuDNN is asked for on a CPU, or any kernel but torch's own choice for split tokens.
    """
    stated = request.attention_backend
    if sequence_degree > 1 and stated not in ("auto", AttentionBackend.NATIVE):
        raise PlanRequestError(
            f"attention_backend {stated} with sequence_degree {sequence_degree}: tokens are split over ranks for "
            "native attention only; use native or auto, or sequence_degree 1"
        )
    if stated != "auto":
        if stated is AttentionBackend.CUDNN and device == "cpu":
            raise PlanRequestError("attention_backend cudnn needs a GPU, and the device is cpu; use native or auto")
        return (AttentionBackend(stated),)
    return _FASTEST_FIRST if _is_tuned(request, device) and sequence_degree == 1 else (AttentionBackend.NATIVE,)


def choose_compilation(
    request: PlanRequest, *, device: str, sequence_degree: int, denoisers_by_parts: bool = False
) -> Compilation:
    """Blocks are compiled on GPUs, unless memory is what counts; elsewhere only where it is asked for.

    Ranks that split tokens exchange them by hooks inside the blocks, which break graphs: not compiled unless asked for.
    Denoisers that are asked to be sharded by parts are not compiled: graphs that end at each part keep what one graph
    would have freed between them, which on Wan 14B took as much memory as the parts save.

    Raises:
        PlanRequestError: compiled blocks are asked for, and denoisers sharded by parts.
    """
    if denoisers_by_parts and request.compile == Compilation.BLOCKS:
        raise PlanRequestError(
            "compile=blocks with a denoiser sharded by parts: a block in one graph does not gather its parts one by "
            "one; use compile none or auto, or sharded:blocks"
        )
    if request.compile != "auto":
        return Compilation(request.compile)
    is_compiled = _is_tuned(request, device) and sequence_degree == 1 and not denoisers_by_parts
    return Compilation.BLOCKS if is_compiled else Compilation.NONE


def _is_tuned(request: PlanRequest, device: str) -> bool:
    return device == "cuda" and request.mode is not Mode.MEMORY
