"""What cannot be combined, as one table; docs/planning.md shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.checkpoint import Component
from planner.degrees import Degrees
from planner.plan import ComponentKind, Residency

_STREAMABLE = frozenset({ComponentKind.DENOISER, ComponentKind.TEXT_ENCODER})


@dataclass(frozen=True, slots=True)
class Situation:
    """One component's residency in its surroundings."""

    component: Component
    residency: Residency
    device: str
    degrees: Degrees


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
        "FSDP manages the denoiser's weights when fsdp_degree is above 1, and what FSDP manages is never moved by "
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
        lambda s: s.residency is Residency.OFFLOAD and s.component.kind is ComponentKind.OTHER,
        "this component has no stage of its own, it may be called at any time; use resident",
    ),
)


def find_incompatibility(situation: Situation) -> Incompatibility | None:
    """The first entry of the table that applies."""
    return next((entry for entry in TABLE if entry.applies(situation)), None)
