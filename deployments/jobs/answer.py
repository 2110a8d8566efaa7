"""A job's row as clients see it."""

from typing import Any

from deployments.answers import JobError
from deployments.jobs.records import Job


def job_fields(job: Job) -> dict[str, Any]:
    """The fields of `JobAnswer`; seconds are whole, as OpenAI's are."""
    return {
        "id": job.id,
        "status": job.state.value,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": None if job.expires_at is None else int(job.expires_at),
        "model": job.model,
        "size": job.size,
        "error": JobError(code=job.error_code, message=job.error_message or "") if job.error_code else None,
        "seed": job.seed,
    }
