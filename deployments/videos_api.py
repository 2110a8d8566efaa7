"""The routes of videos, in the shape of OpenAI's API."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from deployments.answers import DeletedVideo, Video, VideoList
from deployments.bodies import read_body
from deployments.content import FILE, content_response
from deployments.jobs.answer import job_fields
from deployments.jobs.desk import JobDesk
from deployments.jobs.headers import IdempotencyKey, poll_headers
from deployments.jobs.records import UNFINISHED, Job
from deployments.jobs.runner import read_request
from deployments.keys import Owner
from deployments.schemas import VideoRequest
from deployments.settings import Limits

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": VideoRequest.model_json_schema()},
            "multipart/form-data": {"schema": VideoRequest.model_json_schema()},
        },
    }
}
Limit = Annotated[int, Query(ge=1, le=100)]


def videos_router(desk: JobDesk, limits: Limits, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    """`/v1/videos`."""
    router = APIRouter(prefix="/v1/videos", responses=errors)

    @router.post("", openapi_extra=_BODY)
    async def create_video(request: Request, response: Response, owner: Owner, key: IdempotencyKey = None) -> Video:
        """Accepts a video; it is made whatever happens to this connection or this server."""
        body = await read_body(
            request, VideoRequest, max_bytes=limits.max_upload_bytes, files={"input_reference": "input_reference"}
        )
        job = await desk.submit(body, owner=owner, idempotency_key=key)
        return _answer(job, response)

    @router.get("")
    async def list_videos(
        owner: Owner, after: str | None = None, limit: Limit = 20, order: Literal["asc", "desc"] = "desc"
    ) -> VideoList:
        """The caller's videos by time of creation."""
        page = await desk.page(owner=owner, kind="video", after=after, limit=limit, order=order)
        data = [_as_video(job) for job in page.jobs]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=page.has_more)

    @router.get("/{video_id}")
    async def get_video(video_id: str, response: Response, owner: Owner) -> Video:
        """How far a video is."""
        return _answer(await desk.get(video_id, owner=owner, kind="video"), response)

    @router.post("/{video_id}/cancel")
    async def cancel_video(video_id: str, response: Response, owner: Owner) -> Video:
        """Ends a video at its next denoising step; it stays as failed, with the code `cancelled`."""
        return _answer(await desk.cancel(video_id, owner=owner, kind="video"), response)

    @router.delete("/{video_id}")
    async def delete_video(video_id: str, owner: Owner) -> DeletedVideo:
        """Removes a video and its files, whatever its state."""
        await desk.delete(video_id, owner=owner, kind="video")
        return DeletedVideo(id=video_id)

    @router.get("/{video_id}/content", responses=FILE)
    async def get_content(
        request: Request, video_id: str, owner: Owner, variant: Literal["video", "thumbnail"] = "video"
    ) -> Response:
        """The mp4, or a webp of its first frame; takes a Range."""
        file = await desk.file(video_id, owner=owner, kind="video", variant=variant)
        return await content_response(
            request, desk.storage, key=file.key, media_type=file.media_type, num_bytes=file.num_bytes
        )

    return router


def _answer(job: Job, response: Response) -> Video:
    if job.state in UNFINISHED:
        response.headers.update(poll_headers())
    return _as_video(job)


def _as_video(job: Job) -> Video:
    return Video(**job_fields(job), prompt=read_request(job, None).prompt, seconds=job.seconds)
