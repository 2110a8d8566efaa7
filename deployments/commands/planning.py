"""Asking the planner in this process, and showing its answer."""

import typer

from planner.checkpoint import read_checkpoint
from planner.cluster import Cluster
from planner.errors import InfeasiblePlanError
from planner.plan import InfeasibleReport, Plan, PlanRequest
from planner.profiles import configured_folder, read_measurements
from planner.search import plan_group


def make_plan(checkpoint: str, cluster: Cluster, request: PlanRequest, *, as_json: bool) -> Plan:
    """The plan; if there is none its report is printed first.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ProfileError: `HELIOGRAPH_PROFILES` is set and cannot be read.
        InfeasiblePlanError: nothing fits.
    """
    try:
        read = read_checkpoint(checkpoint, variant=request.variant)
        measurements = read_measurements(configured_folder(), checkpoint_fingerprint=read.fingerprint)
        return plan_group(read, cluster, request, measurements=measurements)
    except InfeasiblePlanError as error:
        print_plan(InfeasibleReport.model_validate_json(error.report_json), as_json=as_json)
        raise


def print_plan(plan: Plan | InfeasibleReport, *, as_json: bool) -> None:
    """The plan on standard output: as tables, or as JSON alone."""
    if as_json:
        typer.echo(plan.model_dump_json(indent=2))
        return
    from rich.console import Console

    from planner.report import render_plan, render_rejected

    Console().print(render_plan(plan) if isinstance(plan, Plan) else render_rejected(plan.rejected))
