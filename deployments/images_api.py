"""The routes of pictures, in the shape of OpenAI's API."""

import base64
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployments.answers import DeletedImageJob, ImageJob, MediaItem, MediaResponse
from deployments.bodies import read_body, read_json
from deployments.content import FILE, content_response
from deployments.errors import BadRequestError
from deployments.events import stream_events
from deployments.jobs.answer import job_fields
from deployments.jobs.desk import JobDesk
from deployments.jobs.headers import IdempotencyKey, poll_headers
from deployments.jobs.records import UNFINISHED, Job, JobState
from deployments.jobs.runner import read_request
from deployments.keys import Owner
from deployments.schemas import ImageEditRequest, ImageRequest
from deployments.service import Service

_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": ImageJob, "description": "With `background_job`: a job"}}
_JSON = {"application/json": {"schema": ImageRequest.model_json_schema()}}


def _form_of_edits() -> dict[str, Any]:
    """The schema of the form: its files have names and a form of their own there."""
    schema = ImageEditRequest.model_json_schema()
    file = {"type": "string", "format": "binary"}
    properties = {name: kind for name, kind in schema["properties"].items() if name != "images"}
    properties |= {"image": {"type": "array", "items": file, "minItems": 1}, "mask": file}
    return {**schema, "properties": properties, "required": ["prompt", "image"]}


_FORM = {"multipart/form-data": {"schema": _form_of_edits()}}


def images_router(service: Service, desk: JobDesk, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    """`/v1/images`, and `/results`, where pictures asked for by URL are."""
    router = APIRouter(responses=errors)
    answers = _Answers(service, desk)

    @router.post(
        "/v1/images/generations",
        response_model=MediaResponse,
        responses=_ACCEPTED,
        openapi_extra={"requestBody": {"required": True, "content": _JSON}},
    )
    async def generate_images(http: Request, owner: Owner, key: IdempotencyKey = None) -> Response | MediaResponse:
        """Makes `n` pictures; with `stream` true, server-sent events tell the progress and carry each picture; with
        `background_job` true, the answer is a job."""
        return await answers.answer(await read_json(http, ImageRequest), http, owner=owner, key=key)

    @router.post(
        "/v1/images/edits",
        response_model=MediaResponse,
        responses=_ACCEPTED,
        openapi_extra={"requestBody": {"required": True, "content": _FORM}},
    )
    async def edit_images(http: Request, owner: Owner, key: IdempotencyKey = None) -> Response | MediaResponse:
        """As `generations`, starting from pictures; for pipelines that take them."""
        request = await read_body(
            http, ImageEditRequest, max_bytes=service.settings.limits.max_upload_bytes,
            files={"image": "images", "mask": "mask"}, lists=frozenset({"images"}),
        )  # fmt: skip
        return await answers.answer(request, http, owner=owner, key=key)

    @router.get("/v1/images/jobs/{image_id}")
    async def get_image_job(image_id: str, http: Request, response: Response, owner: Owner) -> ImageJob:
        """How far a picture job is; when it is completed, the pictures."""
        job = await desk.get(image_id, owner=owner, kind="image")
        if job.state in UNFINISHED:
            response.headers.update(poll_headers())
        return await answers.job(job, http)

    @router.post("/v1/images/jobs/{image_id}/cancel")
    async def cancel_image_job(image_id: str, http: Request, owner: Owner) -> ImageJob:
        """Ends a job at its next denoising step; it stays as failed, with the code `cancelled`."""
        return await answers.job(await desk.cancel(image_id, owner=owner, kind="image"), http)

    @router.delete("/v1/images/jobs/{image_id}")
    async def delete_image_job(image_id: str, owner: Owner) -> DeletedImageJob:
        """Removes a job and its pictures, whatever its state."""
        await desk.delete(image_id, owner=owner, kind="image")
        return DeletedImageJob(id=image_id)

    @router.get("/results/{name}", responses=FILE)
    async def get_result(name: str, http: Request) -> Response:
        """The picture of a URL; needs no key, since nobody can guess its name."""
        file = await desk.published(name)
        return await content_response(
            http, desk.storage, key=file.key, media_type=file.media_type, num_bytes=file.num_bytes
        )

    return router


class _Answers:
    """What a request for pictures gets: events, a job, or the pictures themselves or their URLs."""

    def __init__(self, service: Service, desk: JobDesk) -> None:
        self._service = service
        self._desk = desk

    async def answer(
        self, request: ImageRequest, http: Request, *, owner: str, key: str | None
    ) -> Response | MediaResponse:
        if request.background_job:
            job = await self._desk.submit(request, owner=owner, idempotency_key=key)
            return JSONResponse((await self.job(job, http)).model_dump(), status_code=202, headers=poll_headers())
        if key is not None:
            return await self._answer_once(request, http, owner=owner, key=key)
        if request.stream:
            return await stream_events(self._service.stream(request))
        answer = await self._service.generate(request)
        if request.response_format == "b64_json":
            return answer
        items = [await self._by_url(item.content, request, http, item.seed) for item in answer.data]
        return answer.model_copy(update={"data": items})

    async def _answer_once(self, request: ImageRequest, http: Request, *, owner: str, key: str) -> MediaResponse:
        """Makes a job of the request and waits for it: whoever asks again under the key waits for the same job, so
        that nothing is made twice and nothing is lost with an ingress replica."""
        if request.stream:
            raise BadRequestError("Idempotency-Key: events cannot be had twice; drop it, or stream", "stream")
        accepted = await self._desk.submit(request, owner=owner, idempotency_key=key)
        job = await self._desk.finished(accepted, timeout_s=self._service.settings.request_timeout_s)
        return MediaResponse(
            created=int(job.completed_at or job.created_at),
            model=job.model,
            size=job.size,
            output_format=request.output_format,
            data=await self._items(job, http),
        )

    async def job(self, job: Job, http: Request) -> ImageJob:
        data = await self._items(job, http) if job.state is JobState.COMPLETED else None
        return ImageJob(**job_fields(job), data=data)

    async def _items(self, job: Job, http: Request) -> list[MediaItem]:
        request = read_request(job, None)
        assert isinstance(request, ImageRequest)
        items = []
        for file in job.files:
            content = await self._desk.storage.read(file.key)
            if request.response_format == "url":
                items.append(await self._by_url(content, request, http, file.seed))
            else:
                items.append(MediaItem(b64_json=base64.b64encode(content).decode(), seed=file.seed))
        return items

    async def _by_url(self, content: bytes, request: ImageRequest, http: Request, seed: int) -> MediaItem:
        published = await self._desk.publish(content, request.media_type)
        base = self._service.settings.public_url or str(http.base_url)
        return MediaItem(url=f"{base.rstrip('/')}/results/{published.name}", seed=seed)
