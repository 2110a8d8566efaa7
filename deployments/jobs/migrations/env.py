"""Run by Alembic with the connection that `database.migrate` has opened and locked."""

from alembic import context

from deployments.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
