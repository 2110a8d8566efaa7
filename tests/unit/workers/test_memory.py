"""How device memory is handed out; what it does on a GPU is in `tests/gpu`."""

import pytest
import torch

from workers.memory import ALLOCATOR_VARIABLES, use_expandable_segments


@pytest.mark.parametrize("name", ALLOCATOR_VARIABLES)
def test_the_users_own_settings_of_the_allocator_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", pytest.fail)
    assert not use_expandable_segments({name: "max_split_size_mb:512"})


def test_segments_expand_unless_the_user_has_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append)
    assert use_expandable_segments({})
    assert settings == ["expandable_segments:True"]
