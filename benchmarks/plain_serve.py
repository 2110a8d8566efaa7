"""The plain way to serve a pipeline with Ray Serve and diffusers, as Ray's documentation shows it: to compare with."""

import base64
import io
import threading
from typing import Any

import torch
from diffusers import DiffusionPipeline
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve

api = FastAPI()


class PictureRequest(BaseModel):
    """The fields that the benchmark sends."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float


@serve.deployment
class PlainModel:
    """A pipeline in one process."""

    def __init__(self, checkpoint: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._pipeline = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._lock = threading.Lock()  # its scheduler keeps the state of one call

    def generate(self, request: PictureRequest, size: tuple[int, int]) -> bytes:
        """The first frame as a PNG file."""
        from PIL import Image

        with self._lock:
            frames = self._pipeline(
                prompt=request.prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                width=size[0],
                height=size[1],
                num_frames=1,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                output_type="np",
            ).frames
        buffer = io.BytesIO()
        Image.fromarray((frames[0][0] * 255).round().astype("uint8")).save(buffer, format="PNG", compress_level=4)
        return buffer.getvalue()


@serve.deployment
@serve.ingress(api)
class PlainIngress:
    """HTTP in front of it."""

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        self._model = model
        self._size = size

    @api.post("/v1/images/generations")
    async def generate(self, request: PictureRequest) -> dict[str, Any]:
        """One picture, as the service under test answers it."""
        content = await self._model.generate.remote(request, self._size)
        return {"data": [{"b64_json": base64.b64encode(content).decode(), "seed": request.seed}]}

    @api.get("/live")
    async def live(self) -> str:
        """The process is up."""
        return "ok"


def build_plain_app(checkpoint: str, *, num_replicas: int, num_threads: int, size: tuple[int, int]) -> Any:
    """One replica for each of the cores that are compared; two ingress replicas, as the service under test has."""
    model = PlainModel.options(  # type: ignore[attr-defined]
        num_replicas=num_replicas, max_ongoing_requests=2, ray_actor_options={"num_cpus": num_threads}
    )
    ingress = PlainIngress.options(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})  # type: ignore[attr-defined]
    return ingress.bind(model.bind(checkpoint, num_threads), size)
