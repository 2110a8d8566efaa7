"""The planner finds blocks from names, the workers from modules: memory is planned for what is then streamed."""

import pytest
import torch

from planner.boundaries import find_block, resolve_block_rule
from planner.tables import find_model as find_declaration
from tests.dist.weights.compare import build
from tests.dist.weights.tiny_models import TinyModel, all_models
from workers.shard_conditions import resolve_boundaries

STATED = {"HiDreamImageTransformer2DModel", "LatteTransformer3DModel", "T5FilmDecoder"}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model, id=model.class_name, marks=() if model.quick or model.class_name in STATED else pytest.mark.full
        )
        for model in all_models()
    ],
)
def test_planner_and_workers_cut_at_the_same_places(model: TinyModel) -> None:
    with torch.device("meta"):
        module = build(model)
    names = list(module.state_dict())
    declaration = find_declaration(model.library, model.class_name)
    assert declaration is not None
    declared = ((declaration.block_classes, declaration.containers),) if declaration.containers else ()
    rule = resolve_block_rule(model.class_name, names, declared=declared)
    assert rule is not None
    planned = {block for name in names if (block := find_block(name, containers=rule.containers))}
    assert planned == set(resolve_boundaries(module).outermost())
