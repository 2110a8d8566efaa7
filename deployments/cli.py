"""The command line. Imports stay light here: `heliograph plan` loads neither torch nor ray."""

import typer

from deployments.commands.check import check
from deployments.commands.generate import generate
from deployments.commands.key import key
from deployments.commands.plan import plan
from deployments.commands.serve import serve
from deployments.commands.status import status

app = typer.Typer(
    name="heliograph",
    help="Plans, runs and serves diffusion models in diffusers layout on groups of Ray actors.",
    epilog="Start with: heliograph plan checkpoints/shapes",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command(name="plan")(plan)
app.command(name="generate")(generate)
app.command(name="serve")(serve)
app.command(name="status")(status)
app.command(name="check")(check)
app.command(name="key")(key)


def main() -> None:
    """Entry point of the `heliograph` script. Exit status: 0, 2 bad input, 3 no plan fits, 130 interrupted, else 1."""
    app()


if __name__ == "__main__":
    main()
