"""Sequence parallelism at plan time: whether a denoiser's tokens can be split over ranks, and what that costs."""

from collections.abc import Mapping

from planner.checkpoint import Checkpoint, Component
from planner.costs import Workload, denoiser_tokens, hidden_size, uses_guidance
from planner.degrees import Degrees
from planner.errors import PlanRequestError
from planner.plan import AttentionBackend, ComponentKind, Mode, PlanRequest
from planner.tables import find_model

UNSPLIT_CLASSES: Mapping[str, str] = {
    "LTX2VideoTransformer3DModel": (
        "the plan that diffusers 0.42 declares for it leaves the rotary tables between video and audio and the "
        "timesteps of its tokens whole"
    ),
}
"""Classes with a plan in diffusers that does not work, and why; docs/sequence.md has the trial."""
PLANNED_BLOCKS: Mapping[str, int] = {"HeliosTransformer3DModel": 40}
"""Classes whose plan in diffusers is written out for so many blocks; further ones would be split and not joined."""
EXCHANGED_STATES = 4
"""Hidden states that attention exchanges between heads and tokens: query, key, value and the result."""
_HALF_BYTES = 2


def check_sequence(checkpoint: Checkpoint, *, degree: int) -> None:
    """Refuses a degree that some denoiser of the checkpoint cannot have.

    Raises:
        PlanRequestError: names the component, what is needed, and two ways out.
    """
    if degree == 1:
        return
    denoisers = _denoisers(checkpoint)
    if not denoisers:
        raise PlanRequestError(
            f"sequence_degree={degree}: {checkpoint.path} has no denoiser whose tokens could be split; leave it out, "
            "or use fsdp_degree to share the weights"
        )
    for component in denoisers:
        need = find_sequence_problem(component, degree=degree)
        if need is not None:
            raise PlanRequestError(
                f"sequence_degree={degree}: {component.name} ({component.class_name}) {need}; {_ways_out(component)}"
            )


def split_instead(checkpoint: Checkpoint, request: PlanRequest, stated: Degrees, *, device: str) -> tuple[Degrees, ...]:
    """Degrees with split tokens that are worth trying beside the stated ones; the times decide between them.

    Only where the request asks for more GPUs than lanes use, and leaves the sequence degree open: no more ranks than
    asked for are ever taken, and `memory` mode does not need it. Nor where an attention kernel is stated that tokens
    cannot be split for.
    """
    is_open = request.num_ranks is not None and request.sequence_degree is None and not request.share_gpu
    is_open = is_open and request.attention_backend in ("auto", AttentionBackend.NATIVE)
    if not is_open or device != "cuda" or request.mode is Mode.MEMORY or not _denoisers(checkpoint):
        return ()
    num_ranks = stated.num_ranks
    lanes = {stated.cfg} if request.cfg_degree or uses_guidance(checkpoint) else {stated.cfg, 1}
    found = []
    for cfg in sorted(lanes):
        for degree in (d for d in range(2, num_ranks // cfg + 1) if num_ranks % (cfg * d) == 0):
            if any(find_sequence_problem(component, degree=degree) for component in _denoisers(checkpoint)):
                continue
            # Where lanes and tokens do not use all ranks, shards must.
            open_shards = {1, num_ranks} if cfg * degree == num_ranks else {num_ranks}
            shards = {request.fsdp_degree} if request.fsdp_degree else open_shards
            reason = f"sequence {degree}: the ranks of a lane share its tokens"
            found += [Degrees(num_ranks, cfg, degree, fsdp, reason) for fsdp in sorted(shards)]
    return tuple(found)


def find_sequence_problem(component: Component, *, degree: int) -> str | None:
    """What a denoiser lacks for its tokens to be split over `degree` ranks; None if nothing.

    The number of heads is `num_attention_heads` of the component's config.json: attention gives each rank all tokens of
    its share of the heads.
    """
    if "UNet" in component.class_name:
        return "is a UNet, and only the tokens of transformers can be split"
    declared = find_model(component.library, component.class_name)
    if declared is None or not declared.context_parallel:
        return "needs a context parallel plan (_cp_plan) in diffusers, and has none"
    if component.class_name in UNSPLIT_CLASSES:
        return f"cannot be split: {UNSPLIT_CLASSES[component.class_name]}"
    planned = PLANNED_BLOCKS.get(component.class_name, len(component.blocks))
    if len(component.blocks) > planned:
        return f"has {len(component.blocks)} blocks, and the plan that diffusers declares for it covers {planned}"
    num_heads = _num_heads(component)
    if num_heads is None:
        return "needs num_attention_heads in its config.json, to see that the degree divides it"
    if num_heads % degree:
        return f"has {num_heads} attention heads (num_attention_heads in its config.json), which the degree must divide"
    return None


def exchange_seconds(
    component: Component, checkpoint: Checkpoint, workload: Workload, *, degree: int, link_gb_s: float
) -> float:
    """Seconds that one denoiser call spends in exchanging heads for tokens, in 16 bits; zero for other components.

    In each block a rank sends all but its own share of its tokens' states; nothing hides it.
    """
    if degree == 1 or component.kind is not ComponentKind.DENOISER:
        return 0.0
    tokens = denoiser_tokens(component, checkpoint, workload) * workload.batch_size / degree
    sent = EXCHANGED_STATES * len(component.blocks) * tokens * hidden_size(component) * _HALF_BYTES
    return sent * (degree - 1) / degree / (link_gb_s * 1e9)


def _denoisers(checkpoint: Checkpoint) -> list[Component]:
    return [component for component in checkpoint.components if component.kind is ComponentKind.DENOISER]


def _ways_out(component: Component) -> str:
    num_heads = _num_heads(component) or 1
    smaller = [degree for degree in range(2, num_heads + 1) if find_sequence_problem(component, degree=degree) is None]
    first = f"use sequence_degree {_listed(smaller)}" if smaller else "leave sequence_degree out"
    return f"{first}, or use cfg_degree and fsdp_degree instead"


def _listed(degrees: list[int]) -> str:
    shown = [str(degree) for degree in degrees[:5]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _num_heads(component: Component) -> int | None:
    value = component.config.get("num_attention_heads")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
