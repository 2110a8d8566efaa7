"""`heliograph check`: whether a Serve config says what it means, before it reaches a cluster."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deployments.commands import options
from deployments.commands.exit_status import ExitStatus, exit_status


def check(
    config: Annotated[Path, typer.Argument(help="A Serve config, as for `serve deploy`.")],
    as_json: options.JsonFlag = False,
) -> None:
    """Checks the whole of a Serve config: unknown and repeated keys (which Serve ignores), values, our settings.

    Nothing is started, and the checkpoint is not looked at: `heliograph plan` does that. Exit status 2 if there is an
    error; warnings alone are 0.

    Example: `heliograph check examples/shapes.yaml`
    """
    with exit_status():
        from deployments.config_check import check_config, read_config

        findings = check_config(read_config(config))
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        for finding in [] if as_json else findings:
            typer.echo(str(finding), err=True)
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(ExitStatus.BAD_INPUT)
        if not as_json:
            typer.echo(f"{config}: ok")
