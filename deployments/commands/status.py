"""`heliograph status`: what the apps on the running cluster are doing."""

import typer

from deployments.commands.exit_status import exit_status


def status() -> None:
    """Says of each app on the running Ray cluster which groups are ready, and what the others wait for.

    The cluster is the one that `RAY_ADDRESS` names, else the one of this machine. `serve status` shows what Serve
    knows; this adds how far each group's start is: waiting for nodes, starting ranks, loading (in percent), warming up.

    Example: `heliograph status`
    """
    with exit_status():
        from deployments.running_cluster import connected

        with connected():
            from ray import serve

            from deployments.stages import describe_app, read_stages

            applications = serve.status().applications
            stages = read_stages()
            for name, app in applications.items():
                typer.echo("\n".join(describe_app(name, app, stages)))
            if not applications:
                typer.echo("no app is deployed")
