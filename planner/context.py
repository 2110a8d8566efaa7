"""What a search starts from: the request, with everything resolved that does not depend on an option."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.calibration import Comparison, compare_measurements
from planner.checkpoint import Checkpoint
from planner.cluster import Cluster
from planner.costs import Workload, resolve_workload
from planner.errors import PlanRequestError
from planner.load_order import LoadItem, LoadPosition, order_components
from planner.measurements import Measurement
from planner.plan import ComponentKind, PlanRequest


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Everything that all options of one search share.

    Attributes:
        device: `cpu` or `cuda`.
        dtype: `float32`, `bfloat16` or `float16`.
        order: the components with weights, in load order.
        comparisons: measurements of this checkpoint and shape beside what the model predicts for them.
    """

    checkpoint: Checkpoint
    request: PlanRequest
    workload: Workload
    device: str
    dtype: str
    order: tuple[LoadPosition, ...]
    comparisons: tuple[Comparison, ...]


def resolve_context(
    checkpoint: Checkpoint,
    cluster: Cluster,
    request: PlanRequest,
    *,
    measurements: Sequence[Measurement],
) -> PlanContext:
    """Resolves shapes, device, dtype and load order, and compares the measurements with the model.

    Raises:
        PlanRequestError: the request contradicts itself or the cluster.
    """
    device = request.device if request.device != "auto" else ("cuda" if cluster.has_gpus else "cpu")
    if device == "cuda" and not cluster.has_gpus:
        raise PlanRequestError(
            f"device cuda is asked for, and no node has a GPU ({cluster.source}); use device cpu or auto"
        )
    if request.share_gpu and device == "cpu":
        raise PlanRequestError(
            "share_gpu puts several ranks on one GPU, and the device is cpu; leave one of the two out"
        )
    items = [LoadItem(c.name, c.kind, c.payload_bytes, c.index_position) for c in checkpoint.components]
    workload = resolve_workload(checkpoint, request)
    dtype = _resolve_dtype(checkpoint, request, device=device)
    return PlanContext(
        checkpoint=checkpoint,
        request=request,
        workload=workload,
        device=device,
        dtype=dtype,
        order=order_components(items),
        comparisons=compare_measurements(
            measurements, checkpoint=checkpoint, workload=workload, dtype=dtype, device=device
        ),
    )


def _resolve_dtype(checkpoint: Checkpoint, request: PlanRequest, *, device: str) -> str:
    if request.dtype != "auto":
        return request.dtype
    if device == "cpu":
        return "float32"
    denoisers = [c for c in checkpoint.components if c.kind is ComponentKind.DENOISER]
    stored = denoisers[0].dtype_bytes if denoisers else {}
    main = max(stored, key=lambda name: stored[name], default="BF16")
    return "float16" if main == "F16" else "bfloat16"
