from itertools import product
from pathlib import Path

import pytest
import yaml

from lastmile_trl.errors import InputError
from lastmile_trl.recipe import LOSSES, collect, load

GRPO = {
    "method": "grpo",
    "model": {"model_name_or_path": "some/model"},
    "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target"},
    "rewards": [
        "length",
        {"rouge": {"variant": "rougeL", "weight": 1.0}},
        {"rouge": {"variant": "rouge1", "name": "r1"}},
    ],
    "training": {"learning_rate": "1e-5", "output_dir": "runs/x"},
}


@pytest.fixture
def write(tmp_path):
    def write(values=None, name="recipe.yaml", **sections):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**GRPO, **sections} if values is None else values, sort_keys=False))
        return path

    return write


def test_a_number_with_an_exponent_is_a_number(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GRPO).replace("'1e-5'", "1e-5"))
    assert load(path).training["learning_rate"] == 1e-5


def test_sections_become_dataclasses_with_their_defaults(write):
    recipe = load(write(training={}))
    assert recipe.data.max_prompt_tokens == 512
    assert recipe.evaluation.metrics == ["rouge", "length", "repetition"]
    assert recipe.hub.private is True


def test_overrides_take_yaml_values_and_reach_rewards_by_name(write):
    recipe = load(
        write(training={}),
        ["training.learning_rate=2e-5", "training.max_steps=3", "data.max_rows=null", "rewards.rouge.weight=0.5",
         "rewards.length.weight=0.25", "rewards.r1.variant=rouge2", "training.report_to=[tensorboard]"],
    )  # fmt: skip
    assert recipe.training["learning_rate"] == 2e-5
    assert recipe.training["max_steps"] == 3
    assert recipe.training["report_to"] == ["tensorboard"]
    assert recipe.data.max_rows is None
    assert recipe.rewards == [
        {"length": {"weight": 0.25}},
        {"rouge": {"variant": "rougeL", "weight": 0.5}},
        {"rouge": {"variant": "rouge2", "name": "r1"}},
    ]


def test_a_template_in_an_override_is_text(write):
    overrides = ["data.prompt={source} ->", "data.shorten=null", 'model.dtype="float32"', "training.seed=5"]
    recipe = load(write(training={}), overrides)
    assert recipe.data.prompt == "{source} ->" and recipe.data.shorten is None
    assert recipe.model["dtype"] == "float32" and recipe.training["seed"] == 5
    more = load(write(training={}), ["training.save_strategy=no", "training.log_completions=no", "model.dtype=null"])
    assert more.training["save_strategy"] == "no" and more.training["log_completions"] is False
    assert more.model["dtype"] is None
    with pytest.raises(InputError, match=r"override training.report_to=\[a has no valid YAML value"):
        load(write(training={}), ["training.report_to=[a"])


def test_interpolation_refers_to_other_keys_and_not_to_the_environment(write):
    recipe = load(write(training={"seed": 7}, evaluation={"seed": "${training.seed}"}))
    assert recipe.evaluation.seed == 7
    with pytest.raises(InputError, match="oc.env:HOME.* is not allowed"):
        load(write(training={"run_name": "${oc.env:HOME}"}))
    with pytest.raises(InputError, match="not allowed"):
        load(write(training={}), ["training.run_name=${oc.env:HOME}"])


def test_the_run_folder_follows_the_recipe_unless_it_is_named(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(name="recipes/samsum/grpo.yaml", training={})
    write(name="mine.yaml", training={})
    assert load("recipes/samsum/grpo.yaml").run == Path("runs/samsum/grpo")
    assert load("mine.yaml").run == Path("runs/mine")
    assert load("mine.yaml", ["training.output_dir=elsewhere"]).run == Path("elsewhere")


def test_the_resolved_recipe_reads_back_as_itself(write, tmp_path):
    recipe = load(write(training={"learning_rate": 1e-5}), ["training.seed=3"])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.yaml())
    assert load(again).values == recipe.values


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": "grop"}, "method 'grop' does not exist: did you mean 'grpo'?"),
        ({"rewrads": []}, "unknown section 'rewrads', did you mean 'rewards'?"),
        ({"training": {"lerning_rate": 1e-5}}, "unknown key training.lerning_rate, did you mean 'learning_rate'?"),
        ({"training": {"max_prompt_tokens": 5}}, "training.max_prompt_tokens: it belongs in section `data`."),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate must be float, not 'fast'"),
        ({"training": {"num_generations": 4.5}}, "training.num_generations must be int or None, not 4.5"),
        (
            {"training": {"warmup_ratio": 0.1}},
            "training.warmup_ratio is not used here: it is called training.warmup_steps",
        ),
        ({"training": {"max_prompt_length": 5}}, "data.max_prompt_tokens"),
        ({"training": {"max_seq_length": 5}}, "data.max_prompt_tokens"),
        ({"training": {"overwrite_output_dir": True}}, "--force"),
        ({"training": {"hub_token": "hf_x"}}, "hf auth login"),
        ({"model": {"model_name_or_path": "a", "torch_dtype": "bfloat16"}}, "it is called model.dtype now"),
        ({"model": {}}, "model.model_name_or_path is missing"),
        ({"data": {"prompt": "x"}}, "data.path is missing"),
        ({"data": {"path": "x"}}, "either data.prompt"),
        ({"data": {"path": "x", "messages": []}}, "either data.prompt"),
        ({"data": {"path": "x", "messages": [{"role": "user"}]}}, "data.messages holds {'role': 'user'}; write"),
        ({"data": {"path": "x", "messages": ["{source}"]}}, "data.messages holds '{source}'; write"),
        ({"data": {"path": "x", "prompt": "x", "held_out": 0}}, "data.held_out must be at least 1, not 0"),
        ({"evaluation": {"batch_size": 0}}, "evaluation.batch_size must be at least 1, not 0"),
        ({"evaluation": {"rows": -1}}, "evaluation.rows must be at least 1, not -1"),
        ({"training": {"per_device_train_batch_size": 0}}, "training.per_device_train_batch_size must be at least 1"),
        ({"model": {"model_name_or_path": "a", "dtype": "bf16"}}, "model.dtype must be one of auto, bfloat16"),
        ({"data": {"path": "x", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}}, "either data.prompt"),
        ({"rewards": []}, "needs rewards"),
        ({"rewards": {"rouge": {}}}, "must be a list"),
        ({"method": "sft", "training": {}}, "does not use rewards"),
        ({"hub": {"push": True}}, "hub.repo is missing"),
        ({"training": ["a"]}, "section `training` must hold"),
        ({"data": "x"}, "section `data` must hold"),
        ({"data": {"path": "x", "prompt": "x", "split_at": 0}}, "data.split_at must be at least 1, not 0"),
    ],
)
def test_wrong_recipes_are_refused_with_a_sentence(write, sections, message):
    with pytest.raises(InputError) as error:
        load(write(**{"training": {}, **sections}))
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no recipe"),
        ("- a\n", "holds no recipe"),
        ("method: [grpo\n", "line 2 is not valid YAML"),
        ("method: grpo\nmethod: sft\n", "is not valid YAML: found duplicate key"),
        ("method: !!python/object/apply:os.system ['true']\n", "is not valid YAML: could not determine a constructor"),
        ("method: ${nowhere}\n", "nowhere"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load(path)
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["learning_rate=1", "training.learning_rate", "rewards.bleu.weight=1"])
def test_wrong_overrides(write, override):
    with pytest.raises(InputError, match="override"):
        load(write(training={}), [override])


def test_a_missing_recipe_names_the_nearest_shipped_one():
    with pytest.raises(InputError, match="No recipe 'quickstrat/sft'.*did you mean 'quickstart/sft'"):
        load("quickstrat/sft")


def test_a_shipped_recipe_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart/sft").method == "sft"
    assert load("recipes/quickstart/sft.yaml").method == "sft"


def test_a_folder_runs_in_the_order_of_what_starts_from_what(write, tmp_path):
    write(
        name="task/a_grpo.yaml",
        model={"model_name_or_path": "runs/task/sft"},
        training={"output_dir": "runs/task/grpo"},
    )
    write(name="task/b_rloo.yaml", method="rloo", model={"model_name_or_path": "runs/task/grpo"},
          training={"output_dir": "runs/task/rloo"})  # fmt: skip
    write(name="task/z_sft.yaml", method="sft", rewards=[], training={"output_dir": "runs/task/sft"})
    assert [recipe.source.stem for recipe in collect([tmp_path / "task"])] == ["z_sft", "a_grpo", "b_rloo"]
    given = [tmp_path / "task/b_rloo.yaml", tmp_path / "task/z_sft.yaml"]
    assert [recipe.source.stem for recipe in collect(given)] == ["b_rloo", "z_sft"]


def test_a_stage_comes_after_the_model_that_guides_it(write, tmp_path):
    write(name="task/a_ppo.yaml", method="ppo", training={"output_dir": "runs/task/ppo"},
          guidance={"mode": "ppo++", "guide": "runs/task/sft"})  # fmt: skip
    write(name="task/z_sft.yaml", method="sft", rewards=[], training={"output_dir": "runs/task/sft"})
    assert [recipe.source.stem for recipe in collect([tmp_path / "task"])] == ["z_sft", "a_ppo"]
    for guide in ("base", "my.module:guide", {"endpoint": "http://127.0.0.1:8000/v1", "model": "runs/task/sft"}):
        recipe = load(write(method="ppo", guidance={"mode": "ppo++", "guide": guide}))
        assert recipe.guide_model is None and "runs/task/sft" not in recipe.needs


def test_two_recipes_cannot_share_a_run_folder(write):
    with pytest.raises(InputError, match="both write to runs/x"):
        collect([write(name="a.yaml"), write(name="b.yaml")])


def test_recipes_that_start_from_each_other(write, tmp_path):
    write(name="t/a.yaml", model={"model_name_or_path": "runs/b"}, training={"output_dir": "runs/a"})
    write(name="t/b.yaml", model={"model_name_or_path": "runs/a"}, training={"output_dir": "runs/b"})
    with pytest.raises(InputError, match="start from each other"):
        collect([tmp_path / "t"])


def test_the_folder_one_is_in(write, tmp_path, monkeypatch):
    write()
    monkeypatch.chdir(tmp_path)
    assert [recipe.method for recipe in collect(["."])] == ["grpo"]


def test_an_empty_folder_holds_no_recipe(tmp_path):
    with pytest.raises(InputError, match="holds no recipe"):
        collect([tmp_path])


# --- guidance ------------------------------------------------------------------------------------------------------

GUIDED = {"mode": "ppo++", "guide": "base"}


def test_the_guidance_section_has_the_defaults_of_its_class(write):
    assert load(write()).guidance is None
    guidance = load(write(guidance=GUIDED)).guidance
    assert (guidance.mode, guidance.guide, guidance.probability, guidance.anneal) == ("ppo++", "base", 0.8, [0.5, 1.0])
    assert guidance.sampling == {"top_p": 0.92}
    assert load(write(guidance=GUIDED)).values["guidance"] == GUIDED


def test_a_mode_is_read_from_a_file_as_it_is_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{yaml.safe_dump(GRPO)}guidance:\n  mode: ppo++\n  guide: runs/x/sft\n  anneal: null\n")
    guidance = load(path).guidance
    assert (guidance.mode, guidance.guide, guidance.anneal) == ("ppo++", "runs/x/sft", None)


def test_guidance_on_the_command_line(write):
    changed = load(write(guidance=GUIDED), ["guidance.mode=lols", "guidance.guide=runs/x/sft", "guidance.anneal=null"])
    assert changed.guidance.mode == "lols" and changed.guidance.guide == "runs/x/sft" == changed.guide_model
    assert changed.guidance.anneal is None and changed.guidance.mixture == 0.8
    added = load(write(), ["guidance.mode=drpo", "guidance.probability=0.6", "guidance.anneal=[0, 0.5]"]).guidance
    assert (added.mode, added.guide, added.probability, added.anneal) == ("drpo", "references", 0.6, [0, 0.5])
    address = "http://127.0.0.1:8000/v1"
    served = load(write(guidance=GUIDED), [f"guidance.guide={{endpoint: '{address}', model: big}}"])
    assert served.guidance.guide == {"endpoint": address, "model": "big"}
    smaller = load(write(guidance={**GUIDED, "guide": served.guidance.guide}), ["guidance.guide.model=small"])
    assert smaller.guidance.guide == {"endpoint": address, "model": "small"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"guidance": None}, "section `guidance` must hold `key: value` lines"),
        ({"guidance": {"guide": "base"}}, "guidance.mode is missing: one of ppo++, drpo, aggrevated, lols, d2lols."),
        (
            {"guidance": {"mode": "pp0++"}},
            "guidance.mode must be one of ppo++, drpo, aggrevated, lols, d2lols, not 'pp",
        ),
        ({"guidance": {"mode": "ppo++"}}, "section `guidance`: mode ppo++ needs a guide: base, a model,"),
        ({"guidance": {**GUIDED, "mode": "drpo"}}, "section `guidance`: mode drpo begins with references, not with 'b"),
        ({"guidance": {**GUIDED, "anneal": [1, 0]}}, "section `guidance`: anneal must be two shares of training"),
        ({"guidance": {**GUIDED, "probability": "often"}}, "guidance.probability must be float, not 'often'."),
        ({"guidance": {**GUIDED, "gude": "x"}}, "unknown key guidance.gude, did you mean 'guide'?"),
        ({"training": {"probability": 0.5}}, "unknown key training.probability: it belongs in section `guidance`."),
        (
            {"guidance": {**GUIDED, "prefix_per": "completion"}},
            "with the group baseline of `method: grpo` a prefix per completion teaches nothing: set it to group, or",
        ),
        (
            {"method": "rloo", "guidance": {**GUIDED, "prefix_per": "completion"}},
            "with the group baseline of `method: rloo` a prefix per completion teaches nothing",
        ),
        ({"guidance": GUIDED, "training": {"use_vllm": True}}, "training.use_vllm does not work with guidance, whose"),
        (
            {"guidance": {**GUIDED, "mode": "aggrevated"}, "training": {"mask_truncated_completions": True}},
            "training.mask_truncated_completions looks at how the learner ends a text, and in mode aggrevated the",
        ),
        (
            {"method": "ppo", "guidance": {**GUIDED, "mode": "lols"}, "training": {"missing_eos_penalty": 0}},
            "training.missing_eos_penalty looks at how the learner ends a text, and in mode lols the guide ends it",
        ),
        (
            {"guidance": {**GUIDED, "mode": "d2lols"}, "training": {"max_completion_length": 1}},
            "training.max_completion_length must be at least 2 in mode d2lols: one token for the learner, one for the",
        ),
        ({"method": "sft", "rewards": [], "guidance": GUIDED}, "`method: sft` has no roll-outs to guide: drop the sec"),
        (
            {"method": "pairs", "rewards": [], "preferences": {"negatives": {"truncated": 1}}, "guidance": GUIDED},
            "`method: pairs` has no roll-outs to guide: drop the section `guidance`, or use grpo, rloo, ppo.",
        ),
    ],
)
def test_wrong_guidance_is_refused_with_a_sentence(write, sections, message):
    path = write(**{"training": {}, **sections})
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("mode", "training"),
    [
        ("ppo++", {"mask_truncated_completions": True, "missing_eos_penalty": 0.5, "max_completion_length": 1}),
        ("aggrevated", {"mask_truncated_completions": False, "missing_eos_penalty": None, "max_completion_length": 2}),
    ],
)
def test_what_guidance_works_with(write, mode, training):
    guidance = {"mode": mode, "guide": "base", "prefix_per": "completion"}
    assert load(write(method="ppo", guidance=guidance, training=training)).guidance.mode == mode


@pytest.mark.parametrize("method", LOSSES)
def test_the_losses_are_those_of_trls_trainer(method):
    import re
    from importlib.util import find_spec

    trainer = Path(find_spec("trl").origin).parent / "trainer" / f"{'dpo' if method == 'dpo' else 'grpo'}_trainer.py"
    compared = re.findall(r"\bloss_type (?:==|in) (\"\w+\"|\[[^]]*\])", trainer.read_text())
    assert set(LOSSES[method]) == {name for text in compared for name in re.findall(r'"(\w+)"', text)}


def test_the_best_reward_model_is_kept_however_trl_can_keep_it(write, tmp_path):
    from trl import RewardConfig

    def trl_takes(settings):
        try:
            config = RewardConfig(str(tmp_path), eval_strategy="steps", eval_steps=4, bf16=False, **settings)
        except ValueError:
            return False
        return config.save_strategy != "best" or config.metric_for_best_model is not None  # as its trainer asks

    def we_take(settings):
        training = {"output_dir": "runs/x", **settings}
        pairs = {"method": "reward", "rewards": [], "preferences": {"negatives": {"truncated": 1}}}
        try:
            load(write(**pairs, training=training, evaluation={"every": 4}))
        except InputError:
            return False
        return True

    for loads, saves, steps, metric in product(
        [True, False], ["no", "steps", "epoch", "best"], [None, 3, 4, 8], [None, "eval_loss"]
    ):
        settings = {"load_best_model_at_end": loads, "save_strategy": saves, "metric_for_best_model": metric}
        settings |= {"save_steps": steps} if steps else {}
        assert we_take(settings) == trl_takes(settings), settings
