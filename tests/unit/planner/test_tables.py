"""The generated tables say what the installed libraries declare."""

import importlib

import pytest

from planner import tables
from planner.tables import find_model, is_known, is_pipeline, table_version

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
ATTRIBUTES = {"keep_in_fp32": "_keep_in_fp32_modules", "keep_in_fp32_strict": "_keep_in_fp32_modules_strict"}


def declared(cls: type, attribute: str) -> list[str]:
    value = getattr(cls, attribute, None) or []
    return [value] if isinstance(value, str) else list(value)


def test_diffusers_table_equals_the_installed_version() -> None:
    assert diffusers.__version__ == table_version("diffusers"), "run python -m tests.tools.make_tables"
    for name in diffusers._import_structure["models"]:
        cls = getattr(diffusers, name)
        if not hasattr(cls, "parameters"):
            continue
        found = find_model("diffusers", name)
        assert found is not None, name
        assert set(found.block_classes) == {*declared(cls, "_repeated_blocks"), *declared(cls, "_no_split_modules")}, (
            name
        )
        for field, attribute in ATTRIBUTES.items():
            assert set(getattr(found, field)) == set(declared(cls, attribute)), name
        assert found.context_parallel == bool(getattr(cls, "_cp_plan", None)), name


def test_every_pipeline_and_scheduler_of_diffusers_is_known() -> None:
    for name in diffusers._import_structure["pipelines"]:
        assert is_pipeline(name) or not name.endswith("Pipeline"), name
    for name in diffusers._import_structure["schedulers"]:
        assert is_known("diffusers", name), name


@pytest.mark.parametrize(
    "name",
    [
        "UMT5EncoderModel",
        "T5EncoderModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "Qwen2_5_VLForConditionalGeneration",
        "LlamaModel",
        "CLIPVisionModelWithProjection",
        "GlmModel",
        "Gemma2Model",
        "Qwen3Model",
        "BertModel",
    ],
)
def test_transformers_table_equals_the_installed_version(name: str) -> None:
    cls = getattr(transformers, name)
    found = find_model("transformers", name)
    assert found is not None
    assert set(found.block_classes) == set(declared(cls, "_no_split_modules"))
    for field, attribute in ATTRIBUTES.items():
        assert set(getattr(found, field)) == set(declared(cls, attribute))


def test_tables_are_made_from_the_pinned_versions() -> None:
    assert transformers.__version__ == table_version("transformers"), "run python -m tests.tools.make_tables"


@pytest.mark.parametrize("library", ["os", "torch", "diffusers.models", ""])
def test_only_the_libraries_and_pipeline_modules_are_known(library: str) -> None:
    assert not is_known(library, "WanTransformer3DModel")


def test_pipeline_modules_exist() -> None:
    for module in tables._load("diffusers")["modules"]:
        assert importlib.util.find_spec(f"diffusers.pipelines.{module}") is not None
