"""The tables as they are now. A change goes into `migrations/versions` as well; a test compares the two."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("model", String(200), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", Integer, nullable=False),
    Column("request", Text, nullable=False),
    Column("attachments", Text),
    Column("request_hash", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("size", String(32), nullable=False),
    Column("seconds", String(32), nullable=False),
    Column("idempotency_key", String(255)),
    Column("num_attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("lease_owner", String(80)),
    Column("lease_expires_at", Float),
    Column("created_at", Float, nullable=False),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("files", Text),
    UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
    Index("ix_jobs_due", "state", "not_before", "created_at"),
    Index("ix_jobs_list", "owner", "kind", "created_at"),
    Index("ix_jobs_expires_at", "expires_at"),
)

downloads = Table(
    "downloads",
    metadata,
    Column("name_hash", String(64), primary_key=True),
    Column("folder", String(64), nullable=False),
    Column("media_type", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("ix_downloads_expires_at", "expires_at"),
)
