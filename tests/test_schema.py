import dataclasses

import pytest

from lastmile_trl.recipe import METHODS, SECTIONS
from lastmile_trl.schema import accepts, annotations, default
from lastmile_trl.train import _load_class

CLASSES = sorted({*METHODS.values(), *SECTIONS.values()})


@pytest.mark.parametrize("path", CLASSES)
def test_the_fields_read_from_source_are_those_of_the_class(path):
    fields = [field.name for field in dataclasses.fields(_load_class(path)) if field.init]
    assert sorted(annotations(path)) == sorted(fields)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_defaults_that_preflight_counts_with_are_the_real_ones(method):
    config = _load_class(METHODS[method])
    for key in ("per_device_train_batch_size", "num_generations", "generation_batch_size", "steps_per_generation",
                "gradient_accumulation_steps"):  # fmt: skip
        field = next(field for field in dataclasses.fields(config) if field.name == key)
        assert default(METHODS[method], key) == field.default


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        ("float", 3, True),
        ("float", "fast", False),
        ("float", None, False),
        ("float | None", None, True),
        ("int", 4.5, False),
        ("int", True, False),
        ("bool", True, True),
        ("bool", 1, False),
        ("dict[str, Any] | str | None", {"a": 1}, True),
        ("list[str] | None", "all-linear", True),
        ("list[float] | None", 1.0, False),
        ("None | str | list[str]", "wandb", True),
        ("SchedulerType | str", "cosine", True),
        ("SomethingElse", 5, True),
    ],
)
def test_accepts(annotation, value, fits):
    assert accepts(annotation, value) is fits
