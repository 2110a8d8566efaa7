"""What an ingress replica holds besides the service: the database, the results, the runner, the keys. No Ray here."""

from dataclasses import dataclass

from deployments.jobs.database import migrate, open_database
from deployments.jobs.desk import JobDesk
from deployments.jobs.results import ResultStorage
from deployments.jobs.runner import JobRunner
from deployments.jobs.state_check import StateCheck
from deployments.jobs.store import JobStore
from deployments.keys import KeyRing, read_keys
from deployments.service import Service


@dataclass(frozen=True, slots=True)
class Front:
    """Everything open and running."""

    desk: JobDesk
    keys: KeyRing
    runner: JobRunner
    store: JobStore

    async def close(self) -> None:
        """Gives the leases back and closes the database."""
        await self.runner.close()
        await self.store.close()


async def open_front(service: Service) -> Front:
    """Opens the state of the settings, brings the schema up to date, and begins to work on jobs.

    Raises:
        SettingsError: the keys or the database's URL cannot be used.
        SQLAlchemyError: the database does not answer.
    """
    settings = service.settings
    keys = KeyRing(read_keys(settings))
    engine = open_database(settings.state.database_url)
    try:
        await migrate(engine)
    except BaseException:
        await engine.dispose()
        raise
    store = JobStore(engine, retention_s=settings.jobs.retention_s)
    storage = ResultStorage(settings.state.storage_url)
    runner = JobRunner(
        store,
        storage,
        lambda request, request_id: service.run(request, request_id=request_id),
        models=list(service.models),
        num_slots=settings.jobs.num_slots or sum(model.max_groups for model in settings.served_models),
        settings=settings.jobs,
    )
    runner.start()
    state = StateCheck(store, storage, timeout_s=2 * settings.health_timeout_s)
    return Front(JobDesk(service, store, storage, runner, state), keys, runner, store)
