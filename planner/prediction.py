"""What given placements need and take, in one setting: the memory and the time model with everything else fixed."""

from dataclasses import dataclass

from planner.checkpoint import Checkpoint
from planner.costs import Workload
from planner.degrees import Degrees
from planner.hardware import Gpu
from planner.memory import Moments, Placement, trace_memory
from planner.times import Times, predict_times


@dataclass(frozen=True, slots=True)
class Setting:
    """What is fixed while placements vary.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu` or `cuda`.
        gpu: the ranks' GPU; None on CPUs and where its rates are not known.
        ranks_per_node: ranks that one node can hold.
    """

    checkpoint: Checkpoint
    workload: Workload
    degrees: Degrees
    dtype: str
    device: str
    gpu: Gpu | None
    ranks_per_node: int

    @property
    def spans_nodes(self) -> bool:
        """True if the group does not fit one node."""
        return self.degrees.num_ranks > self.ranks_per_node

    def trace(self, placements: tuple[Placement, ...]) -> Moments:
        """Memory over time."""
        return trace_memory(
            placements,
            checkpoint=self.checkpoint,
            workload=self.workload,
            degrees=self.degrees,
            dtype=self.dtype,
            device=self.device,
            ranks_on_node=min(self.ranks_per_node, self.degrees.num_ranks),
        )

    def times(self, placements: tuple[Placement, ...]) -> Times:
        """Seconds, and the knees of what is streamed."""
        return predict_times(
            placements,
            checkpoint=self.checkpoint,
            workload=self.workload,
            degrees=self.degrees,
            dtype=self.dtype,
            gpu=self.gpu,
            spans_nodes=self.spans_nodes,
            device=self.device,
        )
