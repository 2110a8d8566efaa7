"""The database behind the jobs: SQLite by default, PostgreSQL by URL; its clock and its schema."""

import asyncio
import fcntl
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Float, event, make_url, text
from sqlalchemy.engine.url import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from deployments.errors import SettingsError

_MIGRATIONS = Path(__file__).parent / "migrations"
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_SQLITE_BUSY_S = 30.0
_MIGRATION_LOCK = 0x68656C696F  # any number that nobody else uses for an advisory lock


class DatabaseNow(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, so that leases do not depend on nodes' clocks agreeing."""

    type = Float()
    inherit_cache = True


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DatabaseNow, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CAST(extract(epoch from clock_timestamp()) AS double precision)"


def open_database(url: str) -> AsyncEngine:
    """An engine in autocommit: every statement stands for itself. Nothing is connected yet.

    Raises:
        SettingsError: the URL is none, or for a database that is not supported.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(parsed, isolation_level="AUTOCOMMIT", connect_args={"timeout": _SQLITE_BUSY_S})
        event.listen(engine.sync_engine, "connect", _keep_what_is_committed)
        return engine
    return create_async_engine(parsed, isolation_level="AUTOCOMMIT", pool_pre_ping=True)


async def migrate(engine: AsyncEngine) -> None:
    """Brings the schema up to date. Several processes may call it at once; one works, the others wait for it."""
    if engine.url.get_backend_name() == "sqlite":
        path = Path(str(engine.url.database))
        await asyncio.to_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        with path.with_name(path.name + ".lock").open("w") as lock:  # closing it gives the lock back
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            async with engine.connect() as connection:
                await connection.execute(text("PRAGMA journal_mode=WAL"))  # readers do not wait for writers
                await connection.run_sync(_upgrade)
        return
    async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        await connection.run_sync(_upgrade)


def _parse(url: str) -> URL:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in _DRIVERS:
        raise SettingsError("state.database: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")
    try:
        return make_url(f"{_DRIVERS.get(scheme, scheme)}://{rest}")
    except Exception as error:  # SQLAlchemy's own message repeats the URL, and with it the password
        raise SettingsError("state.database is not a database URL") from error


def _keep_what_is_committed(connection: Any, _record: Any) -> None:
    """In WAL mode a commit survives a power cut only with FULL."""
    connection.execute("PRAGMA synchronous=FULL")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
