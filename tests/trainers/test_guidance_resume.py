"""A guided run that goes on from a checkpoint is the one that was never stopped."""

import guidance_fixture
import pytest
import torch
from ppo_fixture import logged, weights_of

make, guided_by = guidance_fixture.make, guidance_fixture.guided_by
GUIDANCE = ("probability", "share", "prefix_length", "reward_guided", "reward_unguided")
RUN = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-4}
EITHER = {"mode": "lols", "mixture": 0.5, "probability": 0.8, "anneal": [0.0, 1.0], "anchor": 0.1}


def both(guided_by, tmp_path, sort, kind, guidance, **settings):
    """The whole run, and one that goes on from its fourth step."""
    trainers = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-4")):
        trainer = guided_by(sort, kind, guidance=guidance, **(RUN | settings))
        trainer.train(resume_from_checkpoint=resume)
        trainers.append(trainer)
    return trainers


def of_steps(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


@pytest.mark.parametrize(
    ("sort", "guidance"),
    [
        ("references", {"mode": "drpo", "anneal": [0.0, 0.5], "anchor": 0.1}),
        ("model", EITHER),
        ("adapter", EITHER),
        ("text", {"mode": "d2lols", "switch": 0.5, "probability": 0.8, "anneal": [0.0, 1.0]}),
    ],
    ids=str,
)
def test_ppo_goes_on_as_if_never_stopped(guided_by, tmp_path, sort, guidance):
    settings = {"num_iterations": 2, "per_device_train_batch_size": 8, "steps_per_generation": 1}
    whole, resumed = both(guided_by, tmp_path, sort, "ppo", guidance, **settings)
    for name in [f"guidance/{name}" for name in GUIDANCE] + ["reward", "loss", "completions/clipped_ratio"]:
        assert of_steps(whole, name) == of_steps(resumed, name), name
    assert len(set(logged(whole, "guidance/probability"))) > 3 and len(logged(whole, "guidance/prefix_length")) > 2
    weights = weights_of(whole.model)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(resumed.model).items())
    given = [trainer.reward_funcs[0].given for trainer in (whole, resumed)]
    assert len(given[0]) == 6 and given[0][2:] == given[1]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_draws_of_groups_go_on(guided_by, tmp_path, kind):
    guidance = {"mode": "lols", "mixture": 0.5, "probability": 0.8, "anneal": [0.0, 1.0]}
    whole, resumed = both(guided_by, tmp_path, "text", kind, guidance, ends=0.0, learning_rate=0.0)
    for name in ("probability", "share", "prefix_length"):
        assert of_steps(whole, f"guidance/{name}") == of_steps(resumed, f"guidance/{name}"), name
    assert len(set(logged(whole, "guidance/share"))) > 1
