"""What is refused before any rank splits tokens; the splitting itself is tested on ranks in tests/dist/sequence."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny_checkpoints import make_wan_transformer
from workers.errors import LoadError
from workers.sequence import apply_sequence

CONFIG: Any = SimpleNamespace(context_parallel_config=None)


def processors_of(module: Any) -> list[Any]:
    return [part.processor for part in module.modules() if hasattr(part, "processor")]


def test_an_attention_backend_whose_masks_are_not_mended_is_refused() -> None:
    module = make_wan_transformer()
    for processor in processors_of(module):
        processor._attention_backend = "_native_cudnn"
    with pytest.raises(LoadError, match="attention backend _native_cudnn cannot be split"):
        apply_sequence(module, config=CONFIG)


def test_an_attention_that_would_see_its_own_tokens_only_is_refused() -> None:
    class OwnTokensOnly:
        pass

    module = make_wan_transformer()
    module.blocks[1].attn1.processor = OwnTokensOnly()  # type: ignore[union-attr]
    with pytest.raises(LoadError, match=r"its attention \(OwnTokensOnly\) cannot be split"):
        apply_sequence(module, config=CONFIG)
    assert all(getattr(processor, "_parallel_config", None) is None for processor in processors_of(module))
