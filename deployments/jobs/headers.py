"""Headers of requests for jobs and of the answers."""

from typing import Annotated

from fastapi import Header

_POLL_MS = 500

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def poll_headers() -> dict[str, str]:
    """Tells OpenAI's client when to ask again."""
    return {"openai-poll-after-ms": str(_POLL_MS)}
