"""Degrees of a group: how the ranks asked for combine (docs/decisions/0001)."""

from dataclasses import dataclass

from planner.errors import PlanRequestError
from planner.plan import PlanRequest, Residency


@dataclass(frozen=True, slots=True)
class Degrees:
    """`num_ranks` is the larger of `cfg * sequence` and `fsdp`, and a multiple of each."""

    num_ranks: int
    cfg: int
    sequence: int
    fsdp: int
    reason: str

    def label(self) -> str:
        """Short text for plans and rejected options."""
        plural = "" if self.num_ranks == 1 else "s"
        return f"{self.num_ranks} rank{plural} (cfg {self.cfg}, sequence {self.sequence}, fsdp {self.fsdp})"


def has_explicit_degrees(request: PlanRequest) -> bool:
    """True if the request states a degree, the number of ranks, or a sharded component."""
    stated = (request.num_ranks, request.cfg_degree, request.sequence_degree, request.fsdp_degree)
    return any(degree is not None for degree in stated) or _wants_sharded(request)


def resolve_degrees(request: PlanRequest) -> Degrees:
    """Combines the explicit degrees; what is not stated is 1, or what the number of ranks needs.

    Raises:
        PlanRequestError: the degrees contradict each other.
    """
    sequence = request.sequence_degree or 1
    num_ranks, cfg, fsdp = request.num_ranks, request.cfg_degree, request.fsdp_degree
    reasons: list[str] = []
    if fsdp is None and cfg is None and sequence == 1 and num_ranks is None and _wants_sharded(request):
        fsdp = 2
        reasons.append("fsdp 2: a component is to be sharded, and no degree is stated")
    if cfg is None:
        cfg = 2 if num_ranks is not None and fsdp is None and num_ranks % (2 * sequence) == 0 else 1
        if cfg == 2:
            reasons.append(f"cfg 2: {num_ranks} ranks can run the two branches of guidance at once")
    if num_ranks is None:
        num_ranks = max(cfg * sequence, fsdp or 1)
    if fsdp is None:
        needed = cfg * sequence < num_ranks or (_wants_sharded(request) and num_ranks > 1)
        fsdp = num_ranks if needed else 1
        if needed:
            reasons.append(f"fsdp {fsdp}: all {num_ranks} ranks hold a share of the weights")
    _check(num_ranks, cfg, sequence, fsdp)
    return Degrees(num_ranks, cfg, sequence, fsdp, "; ".join(reasons) or "as stated")


def _check(num_ranks: int, cfg: int, sequence: int, fsdp: int) -> None:
    wanted = max(cfg * sequence, fsdp)
    if num_ranks != wanted or num_ranks % (cfg * sequence) or num_ranks % fsdp:
        raise PlanRequestError(
            f"num_ranks={num_ranks}, cfg_degree={cfg}, sequence_degree={sequence} and fsdp_degree={fsdp} do not "
            f"combine: num_ranks must be the larger of cfg_degree * sequence_degree = {cfg * sequence} and "
            f"fsdp_degree = {fsdp}, and a multiple of both; leave num_ranks out, or change one degree"
        )


def _wants_sharded(request: PlanRequest) -> bool:
    return any(choice.residency is Residency.SHARDED for choice in request.residency.values())
