"""The planner actor is named after its code: other code has another name."""

import shutil
from pathlib import Path

import planner
from planner.actor import code_hash, hash_sources


def test_any_change_of_a_source_or_table_changes_the_name(tmp_path: Path) -> None:
    copy = tmp_path / "planner"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(planner.__path__[0]), copy, ignore=ignored)
    assert hash_sources(copy) == code_hash()
    for file in ("search.py", "tables/diffusers.json"):
        before = (copy / file).read_bytes()
        (copy / file).write_bytes(before + b" ")
        assert hash_sources(copy) != code_hash()
        (copy / file).write_bytes(before)
    (copy / "search.py").rename(copy / "hunt.py")
    assert hash_sources(copy) != code_hash()
