"""What given placements need and take, in one setting: the memory and the time model with everything else fixed."""

from dataclasses import dataclass, field

from planner.checkpoint import Checkpoint, Component
from planner.costs import Workload
from planner.degrees import Degrees
from planner.execution import Execution
from planner.hardware import Gpu
from planner.memory import Moments, Placement, device_peaks, trace_memory, workspace_bytes
from planner.plan import Compilation
from planner.times import Times, compute_seconds, predict_times


@dataclass(frozen=True, slots=True)
class Setting:
    """What is fixed while placements vary.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu` or `cuda`.
        gpu: the ranks' GPU; None on CPUs and where its rates are not known.
        ranks_per_node: ranks that one node can hold.
        execution: how models are executed.
    """

    checkpoint: Checkpoint
    workload: Workload
    degrees: Degrees
    dtype: str
    device: str
    gpu: Gpu | None
    ranks_per_node: int
    execution: Execution
    _workspaces: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    _seconds: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def spans_nodes(self) -> bool:
        """True if the group does not fit one node."""
        return self.degrees.num_ranks > self.ranks_per_node

    def trace(self, placements: tuple[Placement, ...]) -> Moments:
        """Memory over time."""
        return trace_memory(
            placements,
            degrees=self.degrees,
            dtype=self.dtype,
            device=self.device,
            ranks_on_node=min(self.ranks_per_node, self.degrees.num_ranks),
            workspace_of=self._workspace_bytes,
        )

    def device_peaks(self, placements: tuple[Placement, ...]) -> tuple[int, ...]:
        """The peaks of `trace` alone, which takes a tenth of its time."""
        if self.device == "cpu":
            return (0,) * self.degrees.num_ranks
        peaks = device_peaks(placements, degrees=self.degrees, dtype=self.dtype, workspace_of=self._workspace_bytes)
        return tuple(peaks)

    def times(self, placements: tuple[Placement, ...]) -> Times:
        """Seconds, and the knees of what is streamed."""
        return predict_times(
            placements,
            workload=self.workload,
            degrees=self.degrees,
            dtype=self.dtype,
            gpu=self.gpu,
            spans_nodes=self.spans_nodes,
            device=self.device,
            compute_seconds_of=self._compute_seconds,
        )

    # Both depend on the component alone, wherever it lies, so they are worked out once.

    def _workspace_bytes(self, component: Component) -> int:
        found = self._workspaces.get(component.name)
        if found is None:
            found = self._workspaces[component.name] = workspace_bytes(
                component,
                self.checkpoint,
                self.workload,
                degrees=self.degrees,
                dtype=self.dtype,
                decoding=self.execution.decoding,
            )
        return found

    def _compute_seconds(self, component: Component) -> float:
        found = self._seconds.get(component.name)
        if found is None:
            found = self._seconds[component.name] = compute_seconds(
                component,
                self.checkpoint,
                self.workload,
                self.degrees,
                self.gpu,
                spans_nodes=self.spans_nodes,
                is_compiled=self.execution.compile is not Compilation.NONE,
            )
        return found
