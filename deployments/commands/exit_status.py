"""From what went wrong to one line on standard error and an exit status."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from deployments.errors import BadRequestError, DeploymentError, SettingsError
from planner.errors import CheckpointError, ClusterError, InfeasiblePlanError, PlannerError, PlanRequestError
from workers.errors import InvalidCallError, WorkerError

_BAD_INPUT = (CheckpointError, PlanRequestError, ClusterError, SettingsError, BadRequestError, InvalidCallError)
_OWN_ERRORS = (PlannerError, WorkerError, DeploymentError)


class ExitStatus(IntEnum):
    """What the commands exit with."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    INFEASIBLE = 3
    INTERRUPTED = 130


@contextmanager
def exit_status() -> Iterator[None]:
    """Ends the command with the status of whatever is raised inside. `HELIOGRAPH_DEBUG=1` shows tracebacks."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted; everything that was started is stopped", err=True)
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    except Exception as error:  # the command's boundary
        if os.environ.get("HELIOGRAPH_DEBUG"):
            traceback.print_exc()
        typer.echo(f"error: {_describe(error)}", err=True)
        raise typer.Exit(_status_of(error)) from error


def _describe(error: Exception) -> str:
    if isinstance(error, _OWN_ERRORS):
        return str(error)
    return f"{type(error).__name__}: {error} (unexpected; HELIOGRAPH_DEBUG=1 shows where)"


def _status_of(error: Exception) -> ExitStatus:
    if isinstance(error, InfeasiblePlanError):
        return ExitStatus.INFEASIBLE
    return ExitStatus.BAD_INPUT if isinstance(error, _BAD_INPUT) else ExitStatus.FAILED
