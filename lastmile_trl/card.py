"""The model card of a run folder."""

import math
import re
from pathlib import Path
from typing import Any

from . import provenance
from .data import completion
from .recipe import max_new_tokens
from .trainers.guidance_config import GuidanceConfig

METHODS = {
    "sft": "supervised fine-tuning (SFT)",
    "grpo": "reinforcement learning (GRPO)",
    "rloo": "reinforcement learning (RLOO)",
    "ppo": "reinforcement learning (PPO)",
    "dpo": "direct preference optimisation (DPO)",
    "reward": "learning to tell better answers from worse",
}


def model_card(run: Path, *, repo: str | None = None) -> str:
    """The model card of a run folder, made from its recipe, its environment and its evaluation."""
    import jinja2

    recipe, evaluation = provenance.recipe(run), provenance.evaluation(run)
    starts, prompt = provenance.starts(run), recipe["data"].get("prompt")
    stages = provenance.stages(run)
    data = provenance.data(stages[0])
    base = provenance.hub_id(starts[-1], run) if starts else None
    adapter = provenance.read_json(run / "adapter_config.json")
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("lastmile_trl"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the result is Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"fenced": _fenced, "cell": _cell}
    return templates.get_template("card.md.jinja").render(
        metadata=_metadata(run, repo, recipe, base, evaluation, data),
        repo=repo or run.resolve().name,
        method=METHODS.get(recipe["method"], recipe["method"].upper()),
        scores=recipe["method"] == "reward",
        starts=[provenance.portable(start) for start in starts],
        base=base,
        adapter=bool(adapter),
        adapter_base=provenance.hub_id(adapter["base_model_name_or_path"], run) if adapter else None,
        merged=bool(recipe.get("model", {}).get("use_peft") and not adapter),
        data=data,
        prompt=prompt,
        messages=provenance.to_yaml(recipe["data"].get("messages")),
        answer=completion(prompt or "", "..."),
        pairs=_pairs(stages),
        guidance=_guidance(recipe),
        rewards=_rewards(recipe),
        evaluation=_evaluation_table(recipe, evaluation),
        max_new_tokens=max_new_tokens(recipe),
        recipe=provenance.to_yaml(recipe),
        environment=provenance.read_json(run / "environment.json"),
    )


def _metadata(run: Path, repo: str | None, recipe: dict, base: str | None, evaluation: dict, data: dict) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    scores = recipe["method"] == "reward"
    task = "text-classification" if scores else "text-generation"
    measured = _accuracies(evaluation) if scores else _greedy(run, evaluation)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data["id"] or "local",
            dataset_name=data["id"] or data["path"],
            dataset_config=data["name"],
            dataset_split=data["eval_split"] or data["split"],
            metric_type="accuracy" if scores else name,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in measured.items()
        if math.isfinite(value)  # the Hub takes numbers alone
    ]
    return ModelCardData(
        base_model=base,
        datasets=[data["id"]] if data["id"] else None,
        library_name="peft" if (run / "adapter_config.json").is_file() else "transformers",
        pipeline_tag=task,
        tags=["lastmile-trl", "trl", recipe["method"]],
        model_name=(repo or run.resolve().name).split("/")[-1] if results else None,
        eval_results=results or None,
    ).to_yaml()


def _greedy(run: Path, evaluation: dict) -> dict[str, float]:
    """What this run's greedy outputs measured, as they are, without post-processing."""
    results = evaluation.get("results", [])
    names = [entry["run"] for entry in results]
    own = run.resolve().name
    name = own if own in names or not names else names[-1]  # a comparison puts the run it is about last
    return {
        metric: measured["mean"]
        for entry in results
        if entry["run"] == name and entry["decoding"] == "greedy" and not entry["postprocessed"]
        for metric, measured in entry["metrics"].items()
        if measured is not None
    }


def _accuracies(evaluation: dict) -> dict[str, float]:
    """How many held-out pairs a reward model ranks right: of all, and by category."""
    if not evaluation:
        return {}
    categories = {f"accuracy, {name}": group for name, group in evaluation["categories"].items()}
    return {name: group["accuracy"]["mean"] for name, group in {"accuracy": evaluation["all"], **categories}.items()}


def _evaluation_table(recipe: dict, evaluation: dict) -> str | None:
    from .evaluation import acceptance, tables

    markdown = acceptance.markdown if recipe["method"] == "reward" else tables.markdown
    return markdown(evaluation) if evaluation else None


def _pairs(stages: list[Path]) -> list[str]:
    """Where the pairs of a better and a worse answer come from, a phrase each; none without pairs."""
    said = []
    for stage in stages:
        recipe, model = provenance.recipe(stage), f"`{provenance.portable(provenance.start(stage))}`"
        asked = recipe.get("preferences", {})
        if asked.get("chosen") and stage is stages[0]:  # else they are those of the stage before
            said.append(f"better answers in `{asked['chosen']}`, worse ones in `{asked['rejected']}`")
        if negatives := asked.get("negatives"):
            made = ", ".join(_per_row(category, value) for category, value in negatives.items())
            said.append(f"references against bad answers made of them, for each row {made}")
        if (samples := asked.get("samples")) is not None:
            ranked = ", ".join(f"{reward['name']} ({reward['weight']})" for reward in _rewards(recipe))
            said.append(f"samples of {model} ({_shown(samples) or 'defaults'}), ranked by {ranked}")
        if (settings := asked.get("filter")) is not None:
            kept = provenance.read_json(stage / "pairs.json").get("filter", {}).get("all")
            counted = f": {kept['kept']} of {kept['pairs']}" if kept else ""
            how = f"by perplexity ({_shown(settings) or 'defaults'}){counted}"
            said.append(f"only those whose answers {model} might have given itself, {how}")
    return said


def _per_row(category: str, value: Any) -> str:
    """How many of a category.

    >>> _per_row("shuffled", 2), _per_row("model_sample", {"per_row": 1, "quantile": 0.5})
    ('2 shuffled', '1 model_sample (quantile=0.5)')
    """
    if not isinstance(value, dict):
        return f"{value} {category}"
    arguments = dict(value)
    number, shown = arguments.pop("per_row", 1), _shown(arguments)
    return f"{number} {category}" + (f" ({shown})" if shown else "")


def _rewards(recipe: dict) -> list[dict[str, Any]]:
    rewards = []
    for entry in recipe.get("rewards", []):
        kind, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        arguments = dict(arguments or {})
        weight, name = arguments.pop("weight", 1.0), arguments.pop("name", kind)
        rewards.append({"name": name, "kind": kind, "weight": weight, "arguments": _shown(arguments)})
    return rewards


def _guidance(recipe: dict) -> str | None:
    """What a guide did in training, and did not; None without one."""
    if "guidance" not in recipe:
        return None
    asked = GuidanceConfig(**recipe["guidance"])
    begins = "began, and the model went on"
    ends = "ended what the model had begun"
    does = {
        "ppo++": begins,
        "drpo": begins,
        "aggrevated": ends,
        "lols": f"{begins}, or (in {1 - (asked.mixture or 0):.0%} of the roll-outs) it {ends}",
        "d2lols": f"{ends}, and after {asked.switch or 0:.0%} of the training {begins}",
    }[asked.mode]
    said = [
        f"mode `{asked.mode}`. In {asked.probability:.0%} of the completions a guide, {_guide(asked.guide)}, {does}."
    ]
    if asked.anneal is not None:
        said.append("This share fell to 0 between {:.0%} and {:.0%} of the training.".format(*asked.anneal))
    said.append("Only tokens that the model wrote itself were trained, while rewards read the whole text.")
    if asked.anchor:
        said.append(f"The references' likelihood was part of the loss, with weight {asked.anchor}.")
    return " ".join([*said, "No guide has a part in the evaluation, nor in use."])


def _guide(guide: str | dict) -> str:
    """Who a guide was.

    >>> _guide("base"), _guide({"endpoint": "http://10.0.0.5/v1", "model": "big"})
    ('the model as it was before', '`big` on a server')
    """
    if isinstance(guide, dict):
        return f"`{guide['model']}` on a server"
    known = {"references": "a reference of the row", "base": "the model as it was before"}
    return known.get(guide, f"`{guide}`")


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())


def _fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text.

    >>> print(_fenced("a", "text"))
    ```text
    a
    ```
    """
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _cell(value: Any) -> str:
    r"""A value that stays in its table cell.

    >>> print(_cell("a|b"))
    a\|b
    """
    return str(value).replace("|", r"\|").replace("\n", " ")
