"""What the seam's tests know about a tiny pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["branch", "batched", "mixed", "guider", "none"]
"""How a pipeline does guidance: a call a branch, one call for all branches, both, guider objects, or not at all."""


@dataclass(frozen=True)
class TinyPipeline:
    """A random pipeline and the arguments of one call.

    Attributes:
        pipeline: a real diffusers pipeline of tiny random models, on the CPU in float32 (`Case.make` may be cast).
        arguments: of a call with guidance switched on; without `generator` and `output_type`.
        denoisers: attribute names of what the seam takes over.
    """

    pipeline: Any
    arguments: dict[str, Any]
    denoisers: tuple[str, ...] = ("transformer",)


@dataclass(frozen=True)
class Case:
    """One row of the coverage table.

    Attributes:
        name: the pipeline's class name, with a suffix after a space where one class has several cases.
        family: as in docs/seam.md.
        style: how it does guidance.
        make: builds it; the same weights each time.
        is_representative: runs in `make test` too, the others in `make test-all` only.
        reason_not_halved: why two lanes cannot halve the work here; None where they must.
    """

    name: str
    family: str
    style: Style
    make: Callable[[], TinyPipeline]
    is_representative: bool = False
    reason_not_halved: str | None = None

    @property
    def is_batched(self) -> bool:
        """Whether calls hold several branches, so that two lanes run other batch sizes than one does."""
        return self.style in ("batched", "mixed")

    @property
    def pipeline_class(self) -> str:
        return self.name.partition(" ")[0]
