"""Headers: what is read, and each hostile case refused by a typed error, quickly and in little memory."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import CheckpointFormatError
from planner.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, SafetensorsHeader, read_header
from tests.unit.planner.checkpoints import write_safetensors
from tests.unit.planner.cost_of import assert_cheap, assert_refused_cheaply


def read_bytes(content: bytes) -> SafetensorsHeader:
    return read_header(lambda at, n: content[at : at + n], file="x.safetensors", file_bytes=len(content))


def packed(header: object, *, data: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"\0" * data


def tensor(begin: int, end: int, *, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(7),
        "scalar": torch.tensor(1.0),
        "e": torch.zeros(0, 4),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, str(file), metadata={"format": "pt"})
    header = read_bytes(file.read_bytes())
    assert {t.name: (t.shape, t.num_bytes, t.num_elements) for t in header.tensors} == {
        "a": ((3, 5), 30, 15), "b": ((7,), 28, 7), "scalar": ((), 4, 1), "e": ((0, 4), 0, 0),
    }  # fmt: skip


ONE_BYTE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
HOSTILE = {
    "empty file": (b"", "truncated or empty"),
    "seven bytes": (b"\0" * 7, "truncated or empty"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "header of all ones": (b"\xff" * 32, "at most"),
    "not utf-8": (packed(b"\xff\xfe{}"), "not valid JSON"),
    "a list": (packed([]), "JSON list"),
    "duplicate name": (packed(b'{"a":' + ONE_BYTE + b',"a":' + ONE_BYTE + b"}", data=1), "twice"),
    "duplicate key inside": (packed(b'{"a":{"dtype":"U8",' + ONE_BYTE[1:] + b"}", data=1), "twice"),
    "duplicate name beside colons in strings": (
        packed(b'{"__metadata__":{"x":"a:b"},"a":' + ONE_BYTE + b',"a":' + ONE_BYTE + b"}", data=1), "twice"),
    "duplicate name deep inside": (packed(b'{"a":{"dtype":{"x":1,"x":1},"shape":[1],"data_offsets":[0,1]}}'), "twice"),
    "duplicate metadata": (packed(b'{"__metadata__":{"x":"1","x":"2"},"a":' + ONE_BYTE + b"}", data=1), "twice"),
    "gap": (packed({"a": tensor(0, 4), "b": tensor(5, 8)}, data=8), "gap"),
    "gap at the start": (packed({"a": tensor(1, 4)}, data=4), "gap"),
    "overlap": (packed({"a": tensor(0, 4), "b": tensor(2, 6)}, data=6), "overlaps"),
    "alias": (packed({"a": tensor(0, 4), "b": tensor(0, 4)}, data=4), "overlaps"),
    "truncated data": (packed({"a": tensor(0, 8)}, data=7), "truncated"),
    "bytes left over": (packed({"a": tensor(0, 4)}, data=9), "no tensor owns"),
    "wrap-around": (packed({"a": tensor(0, 0, shape=[2**32, 2**32])}), "needs"),
    "wrap-around to a small size": (packed({"a": tensor(0, 4, shape=[2**62, 4, 2**62, 4])}, data=4), "needs"),
    "size beside shape": (packed({"a": tensor(0, 4, shape=[3])}, data=4), "needs 3 bytes"),
    "negative dimension": (packed({"a": tensor(0, 4, shape=[-4])}, data=4), "shape"),
    "float dimension": (packed({"a": tensor(0, 4, shape=[4.0])}, data=4), "shape"),  # type: ignore[list-item]
    "boolean dimension": (packed({"a": tensor(0, 1, shape=[True])}, data=1), "shape"),
    "reversed offsets": (packed({"a": tensor(4, 0, shape=[0])}, data=4), "needs"),
    "negative offsets": (packed({"a": tensor(-4, 0, shape=[4])}), "data_offsets"),
    "17 dimensions": (packed({"a": tensor(0, 1, shape=[1] * 17)}, data=1), "shape"),
    "unknown dtype": (packed({"a": tensor(0, 1, dtype="F128")}, data=1), "dtype"),
    "dtype is a list": (packed({"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, data=1), "dtype"),
    "missing shape": (packed({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, data=1), "exactly"),
    "extra key": (packed({"a": {**tensor(0, 1), "x": 1}}, data=1), "exactly"),
    "path as a name": (packed({"../../x": tensor(0, 1)}, data=1), "not a parameter's name"),
    "control character": (packed({"a\nb": tensor(0, 1)}, data=1), "not a parameter's name"),
    "surrogate": (packed(b'{"\\ud800":' + ONE_BYTE + b"}", data=1), "not a parameter's name"),
    "NaN": (packed(b'{"a":NaN}'), "not valid JSON"),
    "huge integer": (packed(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "half a byte": (packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, data=1), "needs 1.5 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_refused_with_file_and_offence(name: str) -> None:
    content, offence = HOSTILE[name]
    with pytest.raises(CheckpointFormatError) as caught:
        read_bytes(content)
    assert str(caught.value).startswith("x.safetensors: ")
    assert offence in str(caught.value)
    assert len(str(caught.value)) < 600


def _with_colons() -> bytes:
    """As many tensors as allowed, parsed twice because of a colon, and the last one wrong."""
    entries = {f"blocks.{i}.attn.to_q.weight": tensor(i, i + 1) for i in range(MAX_TENSORS - 1)}
    return json.dumps({"__metadata__": {"made": "10:30"}, **entries}).encode()


def bombs() -> dict[str, bytes]:
    size = MAX_HEADER_BYTES - 16
    return {
        "nested lists": b"[" * size,
        "a few nested lists": b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        "nested objects": b'{"a":' * (size // 5),
        "many lists": b'{"a":[' + b"[]," * (size // 3 - 4) + b"[]]}",
        "many numbers": b'{"a":[' + b"1," * (size // 2 - 5) + b"1]}",
        "many tensors": b"{" + b",".join(b'"%d":{}' % i for i in range(size // 14)) + b"}",
        "one long string": b'{"' + b"a" * (size - 10) + b'":1}',
        "escapes": b'{"' + b"\\u0041" * (size // 6 - 2) + b'":1}',
        "spaces": b" " * size,
        "one endless shape": b'{"a":{"dtype":"U8","shape":[' + b"9223372036854775807," * 100_000 + b"1],"
        b'"data_offsets":[0,1]}}',
        "colons in strings": _with_colons(),
    }


@pytest.mark.parametrize("name", bombs())
def test_hostile_header_costs_little_time_and_memory(name: str) -> None:
    content = packed(bombs()[name])
    assert_refused_cheaply(lambda: read_bytes(content), error=CheckpointFormatError)


def test_colons_in_strings_are_no_duplicates() -> None:
    header = read_bytes(packed({"__metadata__": {"made": "10:30"}, "a:b": tensor(0, 1), "c": tensor(1, 2)}, data=2))
    assert [entry.name for entry in header.tensors] == ["a:b", "c"]


TOKENS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b'"a.0.w":', b"0", b"1", b"-1", b"1e9", b'"U8"', b" ", b"\\",
     b"null", b'"dtype":', b'"shape":', b'"data_offsets":', ONE_BYTE]
)  # fmt: skip


@given(st.lists(TOKENS, min_size=1, max_size=30), st.integers(1, MAX_HEADER_BYTES // 4))
@settings(max_examples=60, deadline=None)
def test_any_repetition_costs_little(tokens: list[bytes], times: int) -> None:
    unit = b"".join(tokens)
    content = packed((unit * times)[: MAX_HEADER_BYTES - 8], data=1)
    assert_cheap(lambda: read_bytes(content))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_header_or_a_typed_error(content: bytes) -> None:
    with contextlib.suppress(CheckpointFormatError):
        read_bytes(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 60), min_size=2, max_size=2) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_any_json_gives_tiling_tensors_or_a_typed_error(document: dict[str, object], data: int) -> None:
    try:
        header = read_bytes(packed(document, data=data))
    except CheckpointFormatError:
        return
    position = 0
    for entry in sorted(header.tensors, key=lambda t: (t.begin, t.end)):
        assert entry.begin == position
        position = entry.end
    assert position == data == sum(t.num_bytes for t in header.tensors)


@given(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=8), st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_conserved_and_any_truncation_is_found(
    tmp_path: Path, shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    file = write_safetensors(tmp_path / "x.safetensors", {f"t{i}": shape for i, shape in enumerate(shapes)})
    content = file.read_bytes()
    header = read_bytes(content)
    assert header.data_start + sum(t.num_bytes for t in header.tensors) == len(content)
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(CheckpointFormatError):
        read_bytes(content[:cut])
