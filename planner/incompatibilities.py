"""What cannot be combined, as one table; docs/planning.md shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.checkpoint import Component
from planner.costs import ONE_CALL_A_BRANCH
from planner.degrees import Degrees
from planner.plan import ComponentKind, Residency, StepCache

_STREAMABLE = frozenset({ComponentKind.DENOISER, ComponentKind.TEXT_ENCODER})


@dataclass(frozen=True, slots=True)
class Situation:
    """One component's residency in its surroundings."""

    component: Component
    residency: Residency
    device: str
    degrees: Degrees
    step_cache: StepCache | None = None
    pipeline_class: str = ""


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """A combination that is refused at plan time.

    Attributes:
        name: key in the documentation.
        applies: tells whether a situation is one of these.
        reason: why, in one sentence for the user.
    """

    name: str
    applies: Callable[[Situation], bool]
    reason: str


TABLE: tuple[Incompatibility, ...] = (
    Incompatibility(
        "cpu-streaming",
        lambda s: s.device == "cpu" and s.residency in {Residency.LAYERWISE, Residency.OFFLOAD},
        "on a CPU weights already live in host memory, there is nothing to stream them to; use resident or sharded",
    ),
    Incompatibility(
        "fsdp-streaming",
        lambda s: (
            s.residency in {Residency.LAYERWISE, Residency.OFFLOAD}
            and s.degrees.fsdp > 1
            and s.component.kind is ComponentKind.DENOISER
        ),
        "the ranks share the denoiser's weights when fsdp_degree is above 1, and what they share is never moved by "
        "anything else; use sharded, or fsdp_degree 1",
    ),
    Incompatibility(
        "fsdp-whole-denoiser",
        lambda s: (
            s.residency is Residency.RESIDENT and s.degrees.fsdp > 1 and s.component.kind is ComponentKind.DENOISER
        ),
        "fsdp_degree above 1 shards the denoiser; use sharded, or fsdp_degree 1",
    ),
    Incompatibility(
        "sharded-alone",
        lambda s: s.residency is Residency.SHARDED and s.degrees.fsdp == 1,
        "sharding needs fsdp_degree of at least 2",
    ),
    Incompatibility(
        "not-streamable",
        lambda s: s.residency in {Residency.LAYERWISE, Residency.SHARDED} and s.component.kind not in _STREAMABLE,
        "only denoisers and text encoders are cut into blocks; use resident or offload",
    ),
    Incompatibility(
        "no-blocks",
        lambda s: s.residency in {Residency.LAYERWISE, Residency.SHARDED} and not s.component.blocks,
        "no rule finds block boundaries in this model (neither stated containers, nor declared classes, nor the common "
        "numbered containers match); use resident or offload",
    ),
    Incompatibility(
        "always-active",
        lambda s: (
            s.residency is Residency.OFFLOAD and s.component.kind in {ComponentKind.CONTROLNET, ComponentKind.OTHER}
        ),
        "this component has no stage of its own, it may be called at any time; use resident",
    ),
    Incompatibility(
        "step-cache-streaming",
        lambda s: (
            s.step_cache is not None
            and s.residency is Residency.LAYERWISE
            and s.component.kind is ComponentKind.DENOISER
        ),
        "a step cache leaves blocks out of some steps and needs them resident: streaming would copy blocks that do not "
        "run, and compute while waiting for those that do; use resident or offload, or no step cache",
    ),
    Incompatibility(
        "step-cache-fsdp",
        lambda s: (
            s.step_cache is not None and s.residency is Residency.SHARDED and s.component.kind is ComponentKind.DENOISER
        ),
        "a step cache leaves blocks out of some steps, each lane by its own values, and needs them resident: a rank "
        "that leaves a block out would be missing where the others gather it; use fsdp_degree 1, or no step cache",
    ),
    Incompatibility(
        "step-cache-broadcast-lanes",
        lambda s: (
            s.step_cache is StepCache.PYRAMID_ATTENTION_BROADCAST
            and s.degrees.cfg > 1
            and s.component.kind is ComponentKind.DENOISER
            and s.pipeline_class.startswith(ONE_CALL_A_BRANCH)
        ),
        "with Pyramid Attention Broadcast a pipeline that calls its denoiser once a branch gives other results on "
        "several lanes than on one; use cfg_degree 1, or another step cache",
    ),
)


def find_incompatibility(situation: Situation) -> Incompatibility | None:
    """The first entry of the table that applies."""
    return next((entry for entry in TABLE if entry.applies(situation)), None)
