"""Whole checkpoints with one hostile file: a typed error that names file and offence, quickly and in little memory."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import cluster_from_flags
from planner.errors import CheckpointFormatError, CheckpointNotFoundError, PlannerError, UnsafeCheckpointError
from planner.json_text import CONFIG_LIMITS, WEIGHT_INDEX_LIMITS
from planner.plan import PlanRequest
from planner.safetensors_header import MAX_HEADER_BYTES, MAX_NAME_PARTS, MAX_TENSORS
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_json, write_raw, write_safetensors, write_wan
from tests.unit.planner.cost_of import assert_cheap, assert_refused_cheaply

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
JSONS = ("model_index.json", "transformer/config.json", "heliograph.json", INDEX)
GPU = cluster_from_flags(gpus_per_node=2, gpu_type="H100")


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **changes}


def header(document: object, *, data: int = 0) -> Callable[[Path], object]:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return lambda folder: write_raw(folder / WEIGHTS, raw, data_bytes=data)


def text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def deep_names(count: int) -> dict[str, Any]:
    parts = ".".join(["blocks", "0"] * (MAX_NAME_PARTS // 2 - 1))
    return {f"{parts}.{i}": entry(i, i + 1) for i in range(count)}


NEARLY_RIGHT = {f"blocks.{i}.attn.to_q.weight": entry(i, i + 1) for i in range(MAX_TENSORS - 1)}
JSON_BOMBS = {
    "nested lists": b'{"a":' + b"[" * 15_000 + b"]" * 15_000 + b"}",
    "nested objects": b'{"a":' * 15_000 + b"1" + b"}" * 15_000,
    "many lists": b'{"a":[' + b"[]," * 300_000 + b"[]]}",
    "many objects": b'{"a":[' + b"{}," * 300_000 + b"{}]}",
    "many numbers": b'{"a":[' + b"1," * 500_000 + b"1]}",
    "one long number": b'{"a":' + b"9" * 500_000 + b"}",
    "an integer past 64 bits": b'{"_class_name":"WanPipeline","weight_map":1,"a":' + b"9" * 40 + b"}",
    "infinity": b'{"a":Infinity}',
    "not text": b"\xff" * 1000,
    "empty": b"",
    "cut off": b'{"_class_name": "Wan',
    "a list": b"[1]",
    "too large": b" " * (WEIGHT_INDEX_LIMITS.num_bytes + 1),
}
HOSTILE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "thousands of tensors and a wrong last one": (header(NEARLY_RIGHT, data=3), WEIGHTS, "truncated"),
    "thousands of names as deep as allowed": (header(deep_names(MAX_TENSORS), data=1), WEIGHTS, "truncated"),
    "a name deeper than allowed": (header({"0." * 40 + "w": entry(0, 1)}, data=1), WEIGHTS, "not a parameter's name"),
    "names of many numbers": (header({"1." * 250 + "w": entry(0, 1)}, data=1), WEIGHTS, "not a parameter's name"),
    "more tensors than allowed": (
        header({str(i): entry(i, i + 1) for i in range(MAX_TENSORS + 5)}, data=1), WEIGHTS, "more than"),
    "a header past the limit": (
        lambda folder: write_raw(folder / WEIGHTS, b"{}", length=MAX_HEADER_BYTES + 1), WEIGHTS, "at most"),
    "a header past the file": (lambda folder: write_raw(folder / WEIGHTS, b"{}", length=3000), WEIGHTS, "truncated"),
    "an empty file": (text(WEIGHTS, b""), WEIGHTS, "truncated or empty"),
    "metadata only": (header({"__metadata__": {"a": "b"}}, data=7), WEIGHTS, "no tensor owns"),
    "duplicate tensor": (header(b'{"a":1,"a":1}'), WEIGHTS, "twice"),
    "overlapping tensors": (header({"a": entry(0, 4), "b": entry(2, 6)}, data=6), WEIGHTS, "overlaps"),
    "a hole": (header({"a": entry(0, 4), "b": entry(5, 8)}, data=8), WEIGHTS, "gap"),
    "a size that wraps around": (header({"a": entry(0, 0, shape=[2**32, 2**32])}), WEIGHTS, "needs"),
    "offsets past the file": (header({"a": entry(0, 2**62)}, data=4), WEIGHTS, "truncated"),
    "a pipe": (fifo, "transformer", "has no weights"),
    "an index of duplicates": (
        text(INDEX, b'{"weight_map":{"a":"b.safetensors","a":"c.safetensors"}}'), INDEX, "twice"),
    "an index of nothing": (text(INDEX, b'{"weight_map":{}}'), INDEX, "weight_map"),
    "an index of numbers": (text(INDEX, b'{"weight_map":{"a":1}}'), INDEX, "not a name"),
    "an index of missing files": (text(INDEX, b'{"weight_map":{"a":"b.safetensors"}}'), INDEX, "missing"),
    "an index of too many files": (
        text(INDEX, json.dumps({"weight_map": {f"a{i}": f"{i}.safetensors" for i in range(3000)}}).encode()),
        INDEX, "at most"),
    "too many components": (
        text("model_index.json", json.dumps(
            {"_class_name": "WanPipeline", **{f"vae_{i}": ["diffusers", "DDIMScheduler"] for i in range(999)}}
        ).encode()), "model_index.json", "more than 64 components"),
    "absurd defaults": (text("heliograph.json", b'{"defaults":{"width":-5}}'), "heliograph.json", "defaults.width"),
    "endless defaults": (text("heliograph.json", b'{"defaults":{"guidance_scale":1e999}}'), "heliograph.json", "guid"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tables_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Reads once what diffusers and transformers declare, so that it is not taken for a hostile file's cost."""
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("warm"))))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_by_name_quickly(tmp_path: Path, name: str) -> None:
    spoil, file, offence = HOSTILE[name]
    spoil(write_wan(tmp_path))
    message = assert_refused_cheaply(lambda: read_checkpoint(str(tmp_path)), error=CheckpointFormatError)
    assert file in message
    assert offence in message


@pytest.mark.parametrize("file", JSONS)
@pytest.mark.parametrize("name", JSON_BOMBS)
def test_hostile_json_is_refused_by_name_quickly(tmp_path: Path, file: str, name: str) -> None:
    write_wan(tmp_path)
    (tmp_path / file).write_bytes(JSON_BOMBS[name])
    message = assert_refused_cheaply(lambda: read_checkpoint(str(tmp_path)), error=CheckpointFormatError)
    assert file in message


def test_largest_json_that_is_parsed_costs_little(tmp_path: Path) -> None:
    write_wan(tmp_path)
    numbers = b",".join(b"1.%d" % i for i in range(CONFIG_LIMITS.num_values - 10))
    (tmp_path / "transformer/config.json").write_bytes(b'{"a":[' + numbers + b"]," + b'"z":' + b"9" * 30 + b"}")
    message = assert_refused_cheaply(lambda: read_checkpoint(str(tmp_path)), error=CheckpointFormatError)
    assert "at most 64" in message


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "/dev/zero"])
def test_hostile_link_is_refused_quickly(tmp_path: Path, target: str) -> None:
    folder = write_wan(tmp_path / "checkpoint")
    (tmp_path / "outside").write_bytes(b"x")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(target if target.startswith("/") else f"../{target}")
    message = assert_refused_cheaply(lambda: read_checkpoint(str(folder)), error=UnsafeCheckpointError)
    assert WEIGHTS in message


def test_link_to_itself_is_refused_quickly(tmp_path: Path) -> None:
    folder = write_wan(tmp_path)
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").symlink_to("model_index.json")
    assert_refused_cheaply(lambda: read_checkpoint(str(folder)), error=CheckpointNotFoundError)


def test_digits_that_are_no_numbers_are_only_names(tmp_path: Path) -> None:
    write_wan(tmp_path)
    write_safetensors(tmp_path / WEIGHTS, {"².blocks.0.w": (2,), "².blocks.1.w": (2,), "1².blocks.0.w": (2,)})
    transformer = read_checkpoint(str(tmp_path)).find("transformer")
    assert transformer is not None
    assert [block.name for block in transformer.blocks] == ["1².blocks.0", "².blocks.0", "².blocks.1"]


def test_tensors_are_counted_over_all_shards(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "transformer"
    weight_map: dict[str, str] = {}
    for shard in "abc":
        shapes = {f"{shard}{i}": (1,) for i in range(7_500)}
        write_safetensors(folder / f"{shard}.safetensors", shapes, dtype="U8")
        weight_map |= dict.fromkeys(shapes, f"{shard}.safetensors")
    write_json(tmp_path / INDEX, {"weight_map": weight_map})
    with pytest.raises(CheckpointFormatError, match=r"c\.safetensors.*more than 20000 tensors"):
        read_checkpoint(str(tmp_path))


# Fuzz: any change of a file gives a plan or a typed error, and reading it costs little

SCALAR = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8)
    | st.sampled_from([0, 1, -1, 2**31, "diffusers", [None, None], ["diffusers", "AutoencoderKLWan"]])
)  # fmt: skip
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
CONFIG_NAMES = st.sampled_from(
    ["num_attention_heads", "attention_head_dim", "patch_size", "patch_size_t", "ffn_dim", "in_channels", "sample_size",
     "hidden_size", "guidance_embeds", "z_dim", "base_dim", "dim_mult", "temperal_downsample", "scale_factor_temporal",
     "scale_factor_spatial", "block_out_channels", "latent_channels", "d_model", "num_heads", "text_config"]
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan(tmp_path_factory.mktemp("fuzzed"))


def read_and_plan(folder: Path) -> None:
    assert_cheap(lambda: read_checkpoint(str(folder)))
    with contextlib.suppress(PlannerError):
        plan_group(read_checkpoint(str(folder)), GPU, PlanRequest())


@given(
    st.sampled_from(["transformer/config.json", "vae/config.json", "text_encoder/config.json"]),
    st.dictionaries(CONFIG_NAMES, VALUE, max_size=6),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_gives_a_plan_or_a_typed_error(fuzzed: Path, file: str, changes: dict[str, Any]) -> None:
    path = fuzzed / file
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), **changes}))
        read_and_plan(fuzzed)
    finally:
        path.write_text(before)


@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(["_class_name", "vae", "transformer"]), VALUE, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_index_gives_a_plan_or_a_typed_error(fuzzed: Path, changes: dict[str, Any]) -> None:
    path = fuzzed / "model_index.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), **changes}))
        read_and_plan(fuzzed)
    finally:
        path.write_text(before)


@given(st.sampled_from([*JSONS[:2], WEIGHTS, "vae/config.json"]), st.binary(max_size=40), st.integers(0, 400))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_anywhere_give_a_plan_or_a_typed_error(fuzzed: Path, file: str, junk: bytes, position: int) -> None:
    path = fuzzed / file
    before = path.read_bytes()
    try:
        path.write_bytes(before[:position] + junk + before[position + len(junk) // 2 :])
        read_and_plan(fuzzed)
    finally:
        path.write_bytes(before)
