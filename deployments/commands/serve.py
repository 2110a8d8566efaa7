"""`heliograph serve`: the app on this machine, in the foreground, until Ctrl-C."""

from typing import Annotated

import typer

from deployments.commands.exit_status import exit_status


def serve(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A Serve config (as for `serve deploy`), or a checkpoint's folder or URL. Default: heliograph.yaml"
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 for any free one. Default: 8000")] = None,
) -> None:
    """Serves a checkpoint over HTTP on this machine, with a Ray of its own; Ctrl-C stops all of it.

    On a cluster use `serve deploy` with the same file.

    Example: `heliograph serve examples/shapes.yaml --port 8000`
    """
    with exit_status():
        from deployments.commands.foreground import ServeConfig, serve_in_foreground

        serve_in_foreground(ServeConfig.read(config or "heliograph.yaml", host=host, port=port))
