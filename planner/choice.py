"""Which of the options that fit is taken, and why not the others."""

from planner.evaluation import Candidate, format_gib
from planner.plan import Mode, Residency


def objective(candidate: Candidate, mode: Mode) -> tuple[object, ...]:
    """What is minimised: seconds, or in `memory` mode the peak; then what costs less at the same time."""
    # Host memory breaks ties on CPUs, where no time is known and no GPU is used.
    peak = max(candidate.moments.gpu_peak_bytes)
    size = (candidate.spans_nodes, candidate.degrees.num_ranks)
    seconds = round(candidate.times.ranking_s, 6)
    num_moving = sum(p.residency is not Residency.RESIDENT for p in candidate.placements)
    tail = (candidate.moments.host_peak_bytes, candidate.node.name, candidate.label())
    if mode is Mode.MEMORY:
        return (peak, seconds, *size, num_moving, *tail)
    return (seconds, *size, num_moving, peak, *tail)


def why_not(candidate: Candidate, chosen: Candidate, mode: Mode) -> str:
    """The number that put an option that fits behind the chosen one."""
    peak, best = max(candidate.moments.gpu_peak_bytes), max(chosen.moments.gpu_peak_bytes)
    if mode is Mode.MEMORY and peak > best:
        return f"fits, but peaks at {format_gib(peak)} GiB a GPU against {format_gib(best)}"
    slower, fastest = candidate.times.ranking_s, chosen.times.ranking_s
    if round(slower, 6) > round(fastest, 6):
        return f"fits, but a request takes {slower:.3g} s against {fastest:.3g} s"
    if candidate.degrees.num_ranks > chosen.degrees.num_ranks:
        ranks, enough = candidate.degrees.num_ranks, chosen.degrees.num_ranks
        return f"fits, but takes {ranks} ranks for the same time, {enough} are enough"
    return f"fits at the same time, with {format_gib(peak)} GiB a GPU against {format_gib(best)}"
