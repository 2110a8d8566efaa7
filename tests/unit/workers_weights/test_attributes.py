import torch
from torch import nn

from workers.attributes import find_attribute, innermost


class Wrapper:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


def test_own_attribute_wins() -> None:
    assert find_attribute(Wrapper(config=1, module=Wrapper(config=2)), "config") == 1


def test_found_through_each_wrapper() -> None:
    for attribute in ("_fsdp_wrapped_module", "module", "_orig_mod"):
        assert find_attribute(Wrapper(**{attribute: Wrapper(config=3)}), "config") == 3


def test_found_through_several_wrappers() -> None:
    nested = Wrapper(_orig_mod=Wrapper(module=Wrapper(_fsdp_wrapped_module=Wrapper(config=4))))
    assert find_attribute(nested, "config") == 4


def test_none_counts_as_not_found() -> None:
    assert find_attribute(Wrapper(config=None, module=Wrapper(config=5)), "config") == 5
    assert find_attribute(Wrapper(config=None), "config", default="default") == "default"


def test_false_and_zero_count_as_found() -> None:
    assert find_attribute(Wrapper(flag=False, module=Wrapper(flag=True)), "flag") is False
    assert find_attribute(Wrapper(count=0, module=Wrapper(count=1)), "count") == 0


def test_cycles_end() -> None:
    first, second = Wrapper(), Wrapper()
    first.module, second._orig_mod = second, first
    assert find_attribute(first, "config", default=6) == 6
    assert innermost(first) in (first, second)


def test_compiled_module_answers() -> None:
    inner = nn.Linear(2, 3)
    compiled = torch.compile(inner, backend="eager")
    assert find_attribute(compiled, "out_features") == 3
    assert innermost(compiled) is inner


def test_innermost_of_a_plain_object_is_itself() -> None:
    plain = Wrapper()
    assert innermost(plain) is plain
