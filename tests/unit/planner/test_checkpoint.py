"""Reading checkpoints: what counts, what is chosen, and what is refused by which error."""

import json
import os
import pickle
from pathlib import Path

import pytest

from planner.checkpoint import check_loadable, read_checkpoint
from planner.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    UnknownComponentError,
    UnsafeCheckpointError,
)
from planner.plan import ComponentKind
from tests.unit.planner.checkpoints import blocks, write_json, write_safetensors, write_wan

BLOCK_BYTES = (64 * 64 * 2 + 64) * 2
REST_BYTES = 64 * 64 * 2


def edit_index(folder: Path, **changes: object) -> Path:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def shard(folder: Path, weight_map: dict[str, str], *, stem: str = "diffusion_pytorch_model") -> None:
    (folder / f"{stem}.safetensors").unlink()
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def test_reads_components_blocks_bytes_and_parameters(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(write_wan(tmp_path, num_layers=4)))
    assert [(c.name, c.kind) for c in checkpoint.components] == [
        ("text_encoder", ComponentKind.TEXT_ENCODER),
        ("transformer", ComponentKind.DENOISER),
        ("vae", ComponentKind.VAE),
    ]
    transformer = checkpoint.find("transformer")
    assert transformer is not None
    assert [block.name for block in transformer.blocks] == [f"blocks.{i}" for i in range(4)]
    assert {block.tally.payload_bytes for block in transformer.blocks} == {BLOCK_BYTES}
    assert transformer.rest.payload_bytes == REST_BYTES
    assert transformer.payload_bytes == 4 * BLOCK_BYTES + REST_BYTES
    assert transformer.num_parameters * 2 == transformer.payload_bytes
    assert transformer.dtype_bytes == {"BF16": transformer.payload_bytes}
    assert transformer.block_rule is not None
    assert "WanTransformerBlock" in transformer.block_rule.describe()
    assert checkpoint.payload_bytes == sum(c.payload_bytes for c in checkpoint.components)
    assert [w.name for w in checkpoint.weightless] == ["scheduler", "tokenizer"]


def test_absent_component_is_left_out_and_plain_values_are_options(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(write_wan(tmp_path)))
    assert checkpoint.find("transformer_2") is None
    assert checkpoint.options == {"boundary_ratio": None}


def test_blocks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    transformer = read_checkpoint(str(write_wan(tmp_path, num_layers=12, width=16))).find("transformer")
    assert transformer is not None
    assert [block.name for block in transformer.blocks][9:] == ["blocks.9", "blocks.10", "blocks.11"]


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one, two, other = write_wan(tmp_path / "a"), write_wan(tmp_path / "b"), write_wan(tmp_path / "c", num_layers=5)
    assert read_checkpoint(str(one)).fingerprint == read_checkpoint(str(two)).fingerprint
    assert read_checkpoint(str(one)).fingerprint != read_checkpoint(str(other)).fingerprint


def test_defaults_come_from_heliograph_json(tmp_path: Path) -> None:
    write_json(write_wan(tmp_path) / "heliograph.json", {"defaults": {"width": 64, "fps": 8}})
    defaults = read_checkpoint(str(tmp_path)).defaults
    assert (defaults.width, defaults.fps, defaults.height) == (64, 8, None)


def test_wrong_defaults_are_refused_by_name(tmp_path: Path) -> None:
    write_json(write_wan(tmp_path) / "heliograph.json", {"defaults": {"width": "wide"}})
    with pytest.raises(CheckpointFormatError, match=r"heliograph\.json: defaults\.width"):
        read_checkpoint(str(tmp_path))


def test_index_decides_which_shards_count(tmp_path: Path) -> None:
    folder = write_wan(tmp_path, num_layers=2) / "transformer"
    first, second = blocks("blocks", 1), {"blocks.1.w": (8, 8)}
    write_safetensors(folder / "d-00001-of-00002.safetensors", first)
    write_safetensors(folder / "d-00002-of-00002.safetensors", second)
    write_safetensors(folder / "d-stale.safetensors", {"x": (1000,)})
    shard(
        folder,
        {
            **dict.fromkeys(second, "d-00002-of-00002.safetensors"),
            **dict.fromkeys(first, "d-00001-of-00002.safetensors"),
        },
    )
    transformer = read_checkpoint(str(tmp_path)).find("transformer")
    assert transformer is not None
    assert transformer.payload_bytes == BLOCK_BYTES + REST_BYTES + 128
    assert transformer.weight_files == (
        "transformer/d-00002-of-00002.safetensors",
        "transformer/d-00001-of-00002.safetensors",
    )


def test_payload_is_not_the_file_size(tmp_path: Path) -> None:
    folder = write_wan(tmp_path)
    vae = read_checkpoint(str(folder)).find("vae")
    assert vae is not None
    assert vae.payload_bytes == 16 * 16 * 2 < (folder / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size


def test_second_variant_is_not_counted_twice_and_is_chosen_when_asked(tmp_path: Path) -> None:
    folder = write_wan(tmp_path, dtype="F32")
    write_safetensors(
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors", {"decoder.conv.weight": (16, 16)}, dtype="F16"
    )
    plain, half = read_checkpoint(str(folder)), read_checkpoint(str(folder), variant="fp16")
    for checkpoint, size, file in (
        (plain, 1024, "diffusion_pytorch_model"),
        (half, 512, "diffusion_pytorch_model.fp16"),
    ):
        vae = checkpoint.find("vae")
        assert vae is not None
        assert vae.payload_bytes == size
        assert vae.weight_files == (f"vae/{file}.safetensors",)
    # A component without the variant uses its plain weights, as in diffusers.
    assert half.find("transformer") == plain.find("transformer")


def test_sharded_variant_uses_its_own_index(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "vae"
    write_safetensors(folder / "d.fp16-00001-of-00001.safetensors", {"w": (4,)}, dtype="F16")
    write_json(
        folder / "diffusion_pytorch_model.safetensors.index.fp16.json",
        {"weight_map": {"w": "d.fp16-00001-of-00001.safetensors"}},
    )
    vae = read_checkpoint(str(tmp_path), variant="fp16").find("vae")
    assert vae is not None
    assert vae.payload_bytes == 8


def test_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="variant 'int3'"):
        read_checkpoint(str(write_wan(tmp_path)), variant="int3")


def test_only_a_variant_present_is_named_in_the_advice(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "vae"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointFormatError, match="variants fp16"):
        read_checkpoint(str(tmp_path))


def test_tied_weights_count_once(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "text_encoder"
    write_safetensors(folder / "model.safetensors", {"shared.weight": (10, 4), "encoder.embed_tokens.weight": (10, 4)})
    encoder = read_checkpoint(str(tmp_path)).find("text_encoder")
    assert encoder is not None
    assert (encoder.num_parameters, encoder.payload_bytes, encoder.tally.placed_bytes("float32")) == (40, 160, 160)


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [({}, 80), ({"tie_word_embeddings": False}, 80), ({"tie_word_embeddings": True}, 40)],
)
def test_embeddings_are_tied_where_the_configuration_says_so(
    tmp_path: Path, config: dict[str, bool], num_parameters: int
) -> None:
    folder = write_wan(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen2_5_VLForConditionalGeneration"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    shapes = {"lm_head.weight": (10, 4), "model.language_model.embed_tokens.weight": (10, 4)}
    write_safetensors(folder / "text_encoder" / "model.safetensors", shapes)
    encoder = read_checkpoint(str(tmp_path)).find("text_encoder")
    assert encoder is not None
    assert encoder.num_parameters == num_parameters


def test_what_stays_in_float32_is_accounted_for(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "transformer"
    write_safetensors(
        folder / "diffusion_pytorch_model.safetensors", {"blocks.0.norm2.weight": (8,), "blocks.0.ff.weight": (8,)}
    )
    transformer = read_checkpoint(str(tmp_path)).find("transformer")
    assert transformer is not None
    assert transformer.tally.placed_bytes("bfloat16") == 8 * 4 + 8 * 2  # WanTransformer3DModel keeps norm2
    assert transformer.tally.placed_bytes("float32") == 64


def test_transformers_keeps_float32_under_float16_only(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "text_encoder"
    write_safetensors(folder / "model.safetensors", {"encoder.block.0.layer.1.wo.weight": (8,), "x": (8,)})
    encoder = read_checkpoint(str(tmp_path)).find("text_encoder")
    assert encoder is not None
    assert encoder.tally.placed_bytes("bfloat16") == 32
    assert encoder.tally.placed_bytes("float16") == 48


def test_eight_bit_weights_keep_their_size(tmp_path: Path) -> None:
    write_safetensors(
        write_wan(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors", {"w": (16,)}, dtype="F8_E4M3"
    )
    vae = read_checkpoint(str(tmp_path)).find("vae")
    assert vae is not None
    assert vae.tally.placed_bytes("float32") == 16


def test_names_from_before_a_restructuring_still_fall_into_blocks(tmp_path: Path) -> None:
    # Qwen2.5-VL declares model.language_model.layers; files may say model.layers.
    folder = write_wan(tmp_path, extra={"text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"]})
    write_safetensors(
        folder / "text_encoder" / "model.safetensors",
        {"model.layers.0.w": (4,), "visual.blocks.1.w": (4,), "lm_head.weight": (2,)},
    )
    encoder = read_checkpoint(str(tmp_path)).find("text_encoder")
    assert encoder is not None
    assert [b.name for b in encoder.blocks] == ["model.layers.0", "visual.blocks.1"]
    assert encoder.block_rule is not None
    assert encoder.block_rule.source == "classes"


def test_component_of_a_pipeline_module(tmp_path: Path) -> None:
    folder = write_wan(tmp_path, extra={"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    write_json(folder / "safety_checker" / "config.json", {})
    write_safetensors(folder / "safety_checker" / "model.safetensors", {"vision_model.encoder.layers.0.w": (4,)})
    checker = read_checkpoint(str(tmp_path)).find("safety_checker")
    assert checker is not None
    assert (checker.kind, checker.library, checker.module) == (ComponentKind.OTHER, "transformers", "stable_diffusion")


# Refusals


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        read_checkpoint(str(tmp_path / "none"))


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no model_index\.json"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "sd.ckpt", "x.gguf"])
def test_single_file_is_refused_with_advice(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match="from_single_file"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_malformed_index(tmp_path: Path, content: bytes) -> None:
    (write_wan(tmp_path) / "model_index.json").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=r"model_index\.json"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "entry",
    [
        ["diffusers", "EvilModel"],
        ["evil_module", "WanTransformer3DModel"],
        ["transformers", "WanTransformer3DModel"],
        ["os", "system"],
    ],
)
def test_unknown_class_is_refused(tmp_path: Path, entry: list[str]) -> None:
    with pytest.raises(UnknownComponentError, match="transformer is"):
        read_checkpoint(str(edit_index(write_wan(tmp_path), transformer=entry)))


@pytest.mark.parametrize("pipeline", ["EvilPipeline", None, ["x", "WanPipeline"], 3])
def test_unknown_pipeline_is_refused(tmp_path: Path, pipeline: object) -> None:
    with pytest.raises(UnknownComponentError, match="pipeline class"):
        read_checkpoint(str(edit_index(write_wan(tmp_path), _class_name=pipeline)))


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "a\\b", "c:x", "", "a\0b"])
def test_component_name_must_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(str(edit_index(write_wan(tmp_path), **{name: ["diffusers", "AutoencoderKLWan"]})))


@pytest.mark.parametrize(
    "name", ["../../vae/x.safetensors", "/etc/passwd", "..", "sub/x.safetensors", "s3://b/x.safetensors"]
)
def test_weight_index_must_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    shard(write_wan(tmp_path) / "transformer", {"w": name})
    with pytest.raises(UnsafeCheckpointError, match="plain name"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("weight_map", [{}, [], {"w": 3}, {"w": "x.bin"}, {"w": "missing.safetensors"}])
def test_wrong_weight_index(tmp_path: Path, weight_map: object) -> None:
    shard(write_wan(tmp_path) / "transformer", weight_map)  # type: ignore[arg-type]
    with pytest.raises(CheckpointFormatError):
        read_checkpoint(str(tmp_path))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "transformer"
    for name in ("a", "b"):
        write_safetensors(folder / f"{name}.safetensors", {"w": (4,), name: (4,)})
    shard(folder, {"w": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"})
    with pytest.raises(CheckpointFormatError, match=r"'w' is in transformer/a\.safetensors too"):
        read_checkpoint(str(tmp_path))


def test_index_and_shard_disagree(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "transformer"
    write_safetensors(folder / "a.safetensors", {"w": (4,)})
    shard(folder, {"w": "a.safetensors", "v": "a.safetensors"})
    with pytest.raises(CheckpointFormatError, match="'v'"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "inside",
    ["transformer/diffusion_pytorch_model.safetensors", "transformer/config.json", "model_index.json", "transformer"],
)
def test_link_out_of_the_folder(tmp_path: Path, inside: str) -> None:
    folder = write_wan(tmp_path / "checkpoint")
    path = folder / inside
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeCheckpointError, match="link"):
        read_checkpoint(str(folder))


def test_links_within_the_folder_and_to_the_hub_cache_are_followed(tmp_path: Path) -> None:
    plain = write_wan(tmp_path / "models--x" / "snapshots" / "abc")
    expected = read_checkpoint(str(plain)).fingerprint
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for file in list(plain.rglob("*.safetensors")):
        target = blobs / file.parent.name
        file.rename(target)
        file.symlink_to(os.path.relpath(target, file.parent))
    assert read_checkpoint(str(plain)).fingerprint == expected


def test_pickled_weights_are_sized_but_refused_for_loading(tmp_path: Path) -> None:
    folder = write_wan(tmp_path) / "text_encoder"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps("x" * 100))
    checkpoint = read_checkpoint(str(tmp_path))
    encoder = checkpoint.find("text_encoder")
    assert encoder is not None
    assert encoder.payload_bytes == (folder / "pytorch_model.bin").stat().st_size
    with pytest.raises(UnsafeCheckpointError, match=r"text_encoder/pytorch_model\.bin"):
        check_loadable(checkpoint)


def test_pickled_file_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    before = read_checkpoint(str(write_wan(tmp_path))).payload_bytes
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"x" * 5000)
    checkpoint = read_checkpoint(str(tmp_path))
    check_loadable(checkpoint)
    assert checkpoint.payload_bytes == before


def test_truncated_weights(tmp_path: Path) -> None:
    file = write_wan(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointFormatError, match=r"vae/diffusion_pytorch_model\.safetensors.*truncated"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize("missing", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_incomplete_component(tmp_path: Path, missing: str) -> None:
    (write_wan(tmp_path) / "vae" / missing).unlink()
    with pytest.raises(CheckpointFormatError, match="vae"):
        read_checkpoint(str(tmp_path))


def test_missing_url() -> None:
    with pytest.raises(CheckpointNotFoundError):
        read_checkpoint("memory://nothing/here")
    with pytest.raises(CheckpointNotFoundError):
        read_checkpoint("no-such-protocol://x")


def test_reads_what_diffusers_saves(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.tiny_checkpoints import make_tiny_wan

    checkpoint = read_checkpoint(str(make_tiny_wan(tmp_path, two_transformers=True)))
    assert [c.name for c in checkpoint.components] == ["text_encoder", "transformer", "transformer_2", "vae"]
    assert all(c.payload_bytes == c.num_parameters * 4 for c in checkpoint.components)
    assert checkpoint.options["boundary_ratio"] == 0.5
