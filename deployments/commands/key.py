"""`heliograph key`: a new API key, and what to write into the config of it."""

from typing import Annotated

import typer

from deployments.commands.exit_status import exit_status


def key(name: Annotated[str, typer.Argument(help="Whose key it is: jobs belong to this name.")]) -> None:
    """Makes an API key. The service keeps its SHA-256 only: the key itself is shown here and nowhere else.

    Example: `heliograph key alice`
    """
    with exit_status():
        from pydantic import ValidationError

        from deployments.errors import SettingsError
        from deployments.keys import make_key
        from deployments.settings import explain_validation

        try:
            secret, kept = make_key(name)
        except ValidationError as error:
            raise SettingsError(explain_validation(error)) from error
        typer.echo(f"key for the client: {secret}")
        typer.echo(f"under api_keys:     {{name: {kept.name}, sha256: {kept.sha256}}}")
        typer.echo(f"or in the file:     {kept.name} {kept.sha256}")
