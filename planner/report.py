"""A plan drawn as rich tables: components, ranks, memory over time, and the options that fell."""

from typing import TYPE_CHECKING

from planner.plan import ComponentPlan, Correction, Plan, RejectedOption, Residency, ShardUnit

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

GIB = 2**30
BAR_WIDTH = 32


def render_plan(plan: Plan, *, max_rejected: int = 12) -> "Group":
    """Makes a renderable of a plan; rich is imported here, so that planning does not wait for it."""
    from rich.console import Group
    from rich.text import Text

    group = plan.group
    head = Text.assemble(
        (plan.pipeline_class, "bold"),
        f"  {format_bytes(plan.payload_bytes)} of weights, {plan.dtype} on {plan.gpu_type or plan.device}, "
        f"mode {plan.mode}{_shape_text(plan)}\n"
        f"{group.num_ranks} rank(s): cfg {group.cfg_degree} x sequence {group.sequence_degree}, "
        f"fsdp {group.fsdp_degree}; {group.strategy} {_bundle_text(plan)}{_groups_text(plan)}\n"
        f"attention {' > '.join(plan.attention_backends)}; compiled: {plan.compile}; decoding: {plan.decoding}\n"
        f"{_times_text(plan)}{_corrections_text(plan)}",
    )
    return Group(head, _component_table(plan), _memory_table(plan), render_rejected(plan.rejected, limit=max_rejected))


def render_rejected(rejected: tuple[RejectedOption, ...], *, limit: int = 12) -> "Table":
    """A table of the options that were not taken; also for an infeasible report."""
    from rich.table import Table

    shown = rejected[:limit]
    more = f", {len(rejected) - len(shown)} more in --json" if len(rejected) > len(shown) else ""
    table = Table(title=f"Rejected ({len(rejected)}{more})", title_justify="left", expand=False)
    table.add_column("option", overflow="fold")
    table.add_column("why", overflow="fold")
    for entry in shown:
        table.add_row(entry.option, entry.reason)
    return table


def format_bytes(count: int) -> str:
    """Bytes for people: `26.6 GiB`, `3.4 MiB`."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _component_table(plan: Plan) -> "Table":
    from rich.table import Table

    table = Table(title="Components, in load order", title_justify="left")
    for name in ("component", "class", "weights", "parameters", "blocks", "residency", "ranks"):
        table.add_column(name, justify="right" if name in {"weights", "parameters", "blocks"} else "left")
    for component in plan.components:
        table.add_row(
            component.name,
            component.class_name,
            format_bytes(component.payload_bytes),
            _count_text(component.num_parameters),
            str(component.num_blocks) if component.num_blocks else "-",
            _residency_text(component),
            ", ".join(str(rank) for rank in component.ranks),
        )
    return table


def _memory_table(plan: Plan) -> "Table":
    from rich.table import Table

    memory = plan.memory
    on_gpu = plan.device == "cuda"
    capacity = memory.gpu_capacity_bytes[0] if on_gpu else memory.host_capacity_bytes
    what = "a GPU (fullest rank)" if on_gpu else "a node"
    table = Table(title=f"Memory of {what}, of {format_bytes(capacity)}", title_justify="left")
    table.add_column("stage")
    table.add_column("predicted")
    table.add_column("bytes", justify="right")
    for moment in memory.timeline:
        used = max(moment.gpu_bytes) if on_gpu else moment.host_bytes
        table.add_row(moment.stage, draw_bar(used, capacity), format_bytes(used))
    return table


def draw_bar(used: int, capacity: int, *, width: int = BAR_WIDTH) -> str:
    """A bar of `width` cells, filled to the share that is used; a sliver is drawn for anything above zero."""
    filled = min(width, -(-used * width // capacity)) if capacity else 0
    return "█" * filled + "░" * (width - filled)


def _bundle_text(plan: Plan) -> str:
    bundles = plan.group.bundles
    return f"[{bundles[0]}, {len(bundles) - 1} x {bundles[1]}]"


def _groups_text(plan: Plan) -> str:
    return "" if plan.group.max_groups is None else f"; the cluster can hold {plan.group.max_groups} such group(s)"


def _times_text(plan: Plan) -> str:
    predicted = plan.predicted
    if predicted.request_s is None or predicted.step_s is None or predicted.load_s is None:
        return "no rates are known for this hardware: times are not predicted"
    return (
        f"load {predicted.load_s:.3g} s, step {predicted.step_s:.3g} s, request {predicted.request_s:.3g} s (predicted)"
    )


def _shape_text(plan: Plan) -> str:
    shape = plan.shape
    if shape is None:
        return ""
    frames = f", {shape.num_frames} frames" if shape.num_frames > 1 else ""
    batch = f", {shape.batch_size} at once" if shape.batch_size > 1 else ""
    return f", {shape.width}x{shape.height}{frames}{batch}"


def _corrections_text(plan: Plan) -> str:
    lines = [
        f"\n{correction.number} corrected by measurements ({correction.basis}): "
        f"{_number_text(correction, correction.predicted)} -> {_number_text(correction, correction.corrected)}"
        for correction in plan.corrections
    ]
    return "".join(lines)


def _number_text(correction: Correction, value: float | None) -> str:
    if value is None:
        return "unknown"
    return format_bytes(int(value)) if correction.number == "gpu_peak_bytes" else f"{value:.3g} s"


def _count_text(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def _residency_text(component: ComponentPlan) -> str:
    if component.residency is Residency.LAYERWISE:
        resident = f"{component.num_resident_blocks} of {component.num_blocks} resident"
        return f"layerwise, {resident}, {component.prefetch_depth} ahead"
    if component.residency is Residency.SHARDED and component.shard_by is ShardUnit.PARTS:
        return "sharded by parts of blocks"
    return component.residency.value
