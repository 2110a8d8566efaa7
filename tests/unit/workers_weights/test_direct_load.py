"""Direct loading in one process: equality with the library, and every way a checkpoint can be broken."""

import json
import logging
import shutil
import struct
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM

from tests.tiny_checkpoints import make_tiny_wan, make_wan_transformer
from workers.direct_load import LoadedComponent, load_component
from workers.errors import LoadError
from workers.stream_files import find_weight_files, read_headers

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def transformer(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the denoiser's folder, to be broken."""
    return Path(shutil.copytree(checkpoint / "transformer", tmp_path / "transformer"))


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> LoadedComponent:
    return load_component(
        folder, library="diffusers", class_name="WanTransformer3DModel", dtype=dtype, device=CPU, **options,
    )  # type: ignore[arg-type]  # fmt: skip


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def assert_same(loaded: nn.Module, reference: nn.Module) -> None:
    ours, theirs = states(loaded), states(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("component", "library", "class_name"),
    [
        ("transformer", "diffusers", "WanTransformer3DModel"),
        ("vae", "diffusers", "AutoencoderKLWan"),
        ("text_encoder", "transformers", "UMT5EncoderModel"),
    ],
)
def test_equals_from_pretrained(
    checkpoint: Path, component: str, library: str, class_name: str, dtype: torch.dtype
) -> None:
    """All parameters and buffers (also non-persistent ones), with the class's float32 islands."""
    folder = checkpoint / component
    loaded = load_component(folder, library=library, class_name=class_name, dtype=dtype, device=CPU)  # type: ignore[arg-type]
    package, keyword = (diffusers, "torch_dtype") if library == "diffusers" else (transformers, "dtype")
    assert_same(loaded.module, getattr(package, class_name).from_pretrained(folder, **{keyword: dtype}))
    assert loaded.loaded_by == "direct"
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_reads_the_payload_once(transformer: Path) -> None:
    told: list[int] = []
    loaded = load_transformer(transformer, on_bytes=told.append)
    payload = sum(tensor.num_bytes for tensor in read_headers([transformer / WEIGHTS]).values())
    assert loaded.bytes_read == sum(told) == payload


def test_indexed_files_and_variants(tmp_path: Path) -> None:
    model = make_wan_transformer()
    model.save_pretrained(tmp_path, max_shard_size="60KB", variant="fp16")
    assert len(find_weight_files(tmp_path, library="diffusers", variant="fp16").files) > 1
    assert_same(load_transformer(tmp_path, variant="fp16").module, model)


def test_absent_variant_reads_the_plain_files(transformer: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_transformer(transformer, variant="fp16")
    assert "no 'fp16' variant" in caplog.text


def test_two_variants_are_not_read_both(transformer: Path) -> None:
    shutil.copy(transformer / WEIGHTS, transformer / "diffusion_pytorch_model.fp16.safetensors")
    files = find_weight_files(transformer, library="diffusers", variant="fp16").files
    assert [file.name for file in files] == ["diffusion_pytorch_model.fp16.safetensors"]


def test_old_attention_names_are_renamed(tmp_path: Path) -> None:
    """As `from_pretrained` does for autoencoders saved before 2023."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    vae.save_pretrained(tmp_path)
    renamed = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): t
        for name, t in load_file(tmp_path / WEIGHTS).items()
    }
    save_file(renamed, tmp_path / WEIGHTS)
    loaded = load_component(tmp_path, library="diffusers", class_name="AutoencoderKL", dtype=torch.float32, device=CPU)
    assert_same(loaded.module, vae)
    assert "encoder.mid_block.attentions.0.query.weight" in renamed


def test_transformers_keys_are_renamed_and_prefixed(tmp_path: Path) -> None:
    """CLIP files in the field have a `text_model.` prefix that newer classes lack; buffers that are computed now are
    ignored."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    model = CLIPTextModel(config)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}
    prefixed = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    prefixed["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    for variation in (bare, prefixed):
        save_file(variation, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = load_component(
            tmp_path, library="transformers", class_name="CLIPTextModel", dtype=torch.float32, device=CPU
        )
        assert_same(loaded.module, model)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    loaded = load_component(
        tmp_path, library="transformers", class_name="LlamaForCausalLM", dtype=torch.float32, device=CPU
    ).module
    assert_same(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied  # type: ignore[union-attr]


def rewrite(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_missing_keys_are_refused(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: tensors.pop("proj_out.weight"))
    with pytest.raises(LoadError, match=r"missing proj_out\.weight, left over nothing"):
        load_transformer(transformer)


def test_left_over_keys_are_refused(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(LoadError, match="missing nothing, left over extra"):
        load_transformer(transformer)


def test_other_shapes_are_refused(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: tensors.update({"proj_out.bias": torch.zeros(3)}))
    with pytest.raises(LoadError, match=r"proj_out.bias has shape \[3\].*needs \[16\]"):
        load_transformer(transformer)


@pytest.mark.parametrize("cut", [1, 1000])
def test_short_file_is_refused_by_name(transformer: Path, cut: int) -> None:
    data = (transformer / WEIGHTS).read_bytes()
    (transformer / WEIGHTS).write_bytes(data[:-cut])
    with pytest.raises(LoadError, match=rf"{WEIGHTS} is torn: its header describes {len(data)} bytes"):
        load_transformer(transformer)


@pytest.mark.parametrize("kept", [0, 5, 40])
def test_torn_header_is_refused_by_name(transformer: Path, kept: int) -> None:
    data = (transformer / WEIGHTS).read_bytes()
    (transformer / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(LoadError, match=rf"{WEIGHTS} is torn"):
        load_transformer(transformer)


def write_header(file: Path, header: str, data: bytes = b"") -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


@pytest.mark.parametrize(
    ("header", "offence"),
    [
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "4 bytes for shape"),
        ('{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "starts at byte"),
        ('{"a": {"dtype": "F32", "shape": [1]}}', "broken safetensors header"),
        ('{"a": 1, "a": 2}', "same name twice"),
        ("[1, 2]", "broken safetensors header"),
        ("not json", "broken safetensors header"),
    ],
)
def test_broken_headers_are_refused(transformer: Path, header: str, offence: str) -> None:
    write_header(transformer / WEIGHTS, header, b"\0" * 8)
    with pytest.raises(LoadError, match=offence):
        load_transformer(transformer)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_header(tmp_path / "x.safetensors", json.dumps({"a": entry, "b": entry}), b"\0" * 4)
    with pytest.raises(LoadError, match="starts at byte"):
        read_headers([tmp_path / "x.safetensors"])


@pytest.mark.parametrize("name", ["../outside.safetensors", "/abs.safetensors", "weights.bin", "absent.safetensors"])
def test_index_may_name_only_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match="names"):
        find_weight_files(tmp_path, library="diffusers")


def test_pickle_checkpoints_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LoadError, match="Only safetensors files are read"):
        find_weight_files(tmp_path, library="diffusers")


@pytest.mark.parametrize("class_name", ["NoSuchModel", "WanPipeline", "utils"])
def test_only_model_classes_are_built(transformer: Path, class_name: str) -> None:
    with pytest.raises(LoadError, match="has no model class"):
        load_component(transformer, library="diffusers", class_name=class_name, dtype=torch.float32, device=CPU)


def test_what_does_not_map_one_to_one_goes_to_the_library(
    transformer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from workers import direct_load
    from workers.stream_build import NotOneToOneError

    def refuse(*_arguments: object, **_options: object) -> None:
        raise NotOneToOneError("two tensors make one")

    monkeypatch.setattr(direct_load, "map_keys", refuse)
    loaded = load_transformer(transformer, torch.bfloat16)
    assert loaded.loaded_by == "library"
    assert "two tensors make one" in caplog.text
    assert_same(loaded.module, WanTransformer3DModel.from_pretrained(transformer, torch_dtype=torch.bfloat16))


def test_memory_can_be_given(transformer: Path) -> None:
    given: dict[str, torch.Tensor] = {}

    class Places:
        def allocate(self, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
            given[name] = torch.empty(shape, dtype=dtype)
            return given[name]

        def needs_reading(self, name: str) -> bool:
            return True

    module = load_transformer(transformer, place=lambda _model: Places()).module
    assert {name: tensor.data_ptr() for name, tensor in given.items()} == {
        name: tensor.data_ptr() for name, tensor in module.state_dict().items()
    }
    assert_same(module, WanTransformer3DModel.from_pretrained(transformer))
