"""The result of a run for others: its model card, the adapter merged into its base, and the push to the Hub."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .data import completion
from .errors import InputError, RunError
from .recipe import IN_ONE_PROCESS, max_new_tokens
from .rewards.model import check_is_reward_model
from .trainers.guidance_config import GuidanceConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# All that is ever pushed. Checkpoints, completions, outputs, the history and training_args.bin hold users' data,
# optimizer states and settings of this machine.
PUBLISHED = (
    "README.md", "recipe.yaml", "evaluation.json",
    "model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors",  # a critic stays here
    "adapter_config.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template.jinja",
)  # fmt: skip
METHODS = {
    "sft": "supervised fine-tuning (SFT)",
    "grpo": "reinforcement learning (GRPO)",
    "rloo": "reinforcement learning (RLOO)",
    "ppo": "reinforcement learning (PPO)",
    "dpo": "direct preference optimisation (DPO)",
    "reward": "learning to tell better answers from worse",
}
SECRETS = {"endpoint", "token", "hub_token", "push_to_hub_token", "use_auth_token", "api_key", "password", "secret"}
DATA_FILES = (".json", ".jsonl", ".csv", ".parquet")
PATIENCE = 300  # seconds without a sign of life; the Hub client itself would wait for ever


# --- the card ------------------------------------------------------------------------------------------------------


def card(run: Path, *, repo: str | None = None) -> str:
    """The model card of a run folder, made from its recipe, its environment and its evaluation."""
    import jinja2

    recipe, environment, evaluation = _recipe(run), _json(run / "environment.json"), _evaluation(run)
    starts, prompt = _starts(run), recipe["data"].get("prompt")
    stages = _stages(run)
    data = _data(stages[0])
    base = _hub_id(starts[-1], run) if starts else None
    adapter = _json(run / "adapter_config.json")
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
        starts=[_portable(start) for start in starts],
        base=base,
        adapter=bool(adapter),
        adapter_base=_hub_id(adapter["base_model_name_or_path"], run) if adapter else None,
        merged=bool(recipe.get("model", {}).get("use_peft") and not adapter),
        data=data,
        prompt=prompt,
        messages=_yaml(recipe["data"].get("messages")),
        answer=completion(prompt or "", "..."),
        pairs=_pairs(stages),
        guidance=_guidance(recipe),
        rewards=_rewards(recipe),
        evaluation=_evaluation_table(recipe, evaluation),
        max_new_tokens=max_new_tokens(recipe),
        recipe=_yaml(recipe),
        environment=environment,
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
    from .evaluation import acceptance, comparison

    markdown = acceptance.markdown if recipe["method"] == "reward" else comparison.markdown
    return markdown(evaluation) if evaluation else None


def _pairs(stages: list[Path]) -> list[str]:
    """Where the pairs of a better and a worse answer come from, a phrase each; none without pairs."""
    said = []
    for stage in stages:
        recipe, model = _recipe(stage), f"`{_portable(_start(stage))}`"
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
            kept = _json(stage / "pairs.json").get("filter", {}).get("all")
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


# --- what a run folder says ----------------------------------------------------------------------------------------


def _recipe(run: Path) -> dict[str, Any]:
    """The recipe, fit to be read by others: no secrets, no absolute paths."""
    from omegaconf import OmegaConf

    file = run / "recipe.yaml"
    if not file.is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.yaml; name a folder that `lastmile run` made.")
    return _portable(OmegaConf.to_container(OmegaConf.load(file), resolve=False))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _evaluation(run: Path) -> dict[str, Any]:
    """The evaluation without its examples, which are the user's data."""
    return {key: value for key, value in _json(run / "evaluation.json").items() if key != "examples"}


def _yaml(value: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(value)) if value else ""


def _portable(value: Any) -> Any:
    """The value without secrets, and with absolute paths cut to their last part; prompts stay as they are.

    >>> _portable({"path": "/home/me/notes.jsonl", "hub_token": "x", "prompt": "/think {text}"})
    {'path': 'notes.jsonl', 'prompt': '/think {text}'}
    """
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in SECRETS}
        return {key: inner if key in ("prompt", "messages") else _portable(inner) for key, inner in kept.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    path = value.removeprefix("file://")
    if path.startswith(("/", "~")):
        return PurePosixPath(path).name
    return PureWindowsPath(path).name if PureWindowsPath(path).is_absolute() else value


def _starts(run: Path) -> list[str]:
    """The model the run started from, the model that one started from, and so on to the first that says no more."""
    starts: list[str] = []
    folder: Path | None = run
    while folder and (start := _start(folder)) and start not in starts:
        starts.append(start)
        folder = _folder(start, folder)
    return starts


def _start(folder: Path) -> str | None:
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    return _recipe_value(folder, "model.model_name_or_path") or base


def _recipe_value(run: Path, key: str) -> Any:
    from omegaconf import OmegaConf

    file = run / "recipe.yaml"
    return OmegaConf.select(OmegaConf.load(file), key) if file.is_file() else None


def _roots(run: Path) -> list[Path]:
    """Where relative paths of a run may start: here, or where it was trained, which its output_dir tells."""
    output = Path(_recipe_value(run, "training.output_dir") or "/")
    trained = [] if output.is_absolute() else [root for root in run.resolve().parents if (root / output).is_dir()]
    return [Path(), *trained]


def _folder(name: str, run: Path) -> Path | None:
    """The folder of a model or run, None where the name is no folder on this machine."""
    folders = [root / Path(name).expanduser() for root in _roots(run)]
    marks = ("config.json", "adapter_config.json", "recipe.yaml")
    return next((folder for folder in folders if any((folder / mark).is_file() for mark in marks)), None)


def _hub_id(name: str, run: Path) -> str | None:
    """The name, if it can be the id of a Hub repository: `runs/sft` is not where there is a folder `runs`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if any((root / Path(name).parts[0]).exists() for root in _roots(run)) else name


def _stages(run: Path) -> list[Path]:
    """The run, and before it the stages of `method: pairs` that made its rows, the first one first."""
    stages = [run]
    while (made := _folder(_recipe_value(stages[0], "data.path"), stages[0])) and made not in stages:
        if _recipe_value(made, "method") != "pairs":
            break
        stages.insert(0, made)
    return stages


def _data(run: Path) -> dict[str, Any]:
    """The data section of a run, with the `id` of its data set on the Hub, if it is there."""
    path = _recipe_value(run, "data.path")
    found = {"id": None if path.endswith(DATA_FILES) else _hub_id(path, run)}
    return dict.fromkeys(("name", "split", "eval_split", "references", "split_at")) | _recipe(run)["data"] | found


# --- merging -------------------------------------------------------------------------------------------------------


def merge(run: Path, dest: Path) -> Path:
    """Merge an adapter into its freshly loaded, unquantised base and write a plain model to ``dest``.

    The merged model must compute what base and adapter compute together, or nothing is written.
    """
    from peft import PeftModel

    if not (run / "adapter_config.json").is_file():
        raise InputError(f"{run} holds no adapter (no adapter_config.json), so there is nothing to merge.")
    if dest.exists() and any(dest.iterdir()):
        raise InputError(f"{dest} is not empty: name a new folder for the merged model.")
    base, tokenizer = _load_base(run)
    model = PeftModel.from_pretrained(base, run).eval()
    expected = _probe(model)
    merged = model.merge_and_unload()
    _check_equal(_probe(merged), expected, run)

    merged.save_pretrained(dest)
    tokenizer.save_pretrained(dest)
    for name in ("recipe.yaml", "environment.json", "evaluation.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, dest / name)
    if (dest / "recipe.yaml").is_file():
        (dest / "README.md").write_text(card(dest), encoding="utf-8")
    return dest


def _load_base(run: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The base model of an adapter in its own precision, and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    adapter = _json(run / "adapter_config.json")
    name, kind, more, quietly = adapter["base_model_name_or_path"], AutoModelForCausalLM, {}, nullcontext
    scores = adapter.get("task_type") == "SEQ_CLS"
    if scores:
        from trl.trainer.reward_trainer import suppress_seqcls_warning as quietly  # the head comes with the adapter

        check_is_reward_model(str(run))
        kind, more = AutoModelForSequenceClassification, {"num_labels": 1}
    folder = _folder(name, run)
    recipe = _recipe(run) if (run / "recipe.yaml").is_file() else {}
    settings = {
        "revision": None if folder else adapter.get("revision"),
        "trust_remote_code": recipe.get("training", {}).get("trust_remote_code", False),
    }
    try:
        if getattr(AutoConfig.from_pretrained(folder or name, **settings), "quantization_config", None):
            raise InputError(f"{name}, the base of {run}, is stored quantised: adapters merge into full weights only.")
        with quietly():
            base = kind.from_pretrained(folder or name, dtype="auto", **settings, **more)
        own = (run / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(run if own else folder or name, **({} if own else settings))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}, the base of {run}, cannot be loaded ({_first_line(error)}): start where its path is right, or "
            "log in with `hf auth login` if it is private."
        ) from error
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))  # as training did when tokens were added
    if scores:
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # the score stands before the padding
    return base, tokenizer


def _probe(model: Any) -> "Tensor":
    """Logits of a short text: 16 tokens from all over the vocabulary. Of one score, those of its 16 beginnings."""
    import torch

    tokens = torch.linspace(0, model.get_input_embeddings().weight.shape[0] - 1, 16).long().to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=tokens[None]).logits
        if logits.dim() == 3:
            return logits
        return torch.cat([model(input_ids=tokens[None, :end]).logits for end in range(1, 17)])


def _check_equal(logits: "Tensor", expected: "Tensor", run: Path) -> None:
    # In 16 bits, merged weights are rounded: the sum of base and adapter has no more digits than the base.
    tolerance = 1e-4 if expected.element_size() == 4 else 5e-2
    error = float((logits - expected).float().norm() / expected.float().norm())
    if not error <= tolerance:  # a NaN is an error too
        raise RunError(
            f"The merged model of {run} does not compute what base and adapter compute (relative difference "
            f"{error:.1e}, allowed {tolerance:.0e}), so it was not written; use the adapter on its base instead."
        )


# --- pushing -------------------------------------------------------------------------------------------------------


def check_access(repo: str) -> None:
    """Raise if a push to ``repo`` could not succeed: no valid token, or no right to write there."""
    with _reaching_hub(f"The Hub could not be asked whether you may push to {repo}"):
        _full_name(repo)


def push(
    run: Path,
    repo: str,
    *,
    private: bool = True,
    merge: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push what a run made, with its card, in one commit; the address of the result.

    Pushing the same again makes no commit. Files of an earlier push that this one does not have are removed.
    """
    if (method := _recipe_value(run, "method")) in IN_ONE_PROCESS:
        raise InputError(f"{run} holds no model, as `method: {method}` trains none: push a run that does.")
    flags = {"--merge": merge, "--public": not private, "--create-pr": create_pr}
    command = ["lastmile", "push", str(run), repo, *(flag for flag, given in flags.items() if given)]
    again = shlex.join([*command, *(["--revision", revision] if revision else [])])
    hub = partial(_reaching_hub, f"{run} was not pushed to {repo}", f"; push it again with `{again}`")
    with hub():
        name = _full_name(repo, may_write=not create_pr)
    upload = partial(_upload, repo=name, private=private, revision=revision, create_pr=create_pr, hub=hub)
    return _upload_merged(run, upload) if merge else upload(run)


def _upload_merged(run: Path, upload: Callable[[Path], str]) -> str:
    # Inside the run folder there is room for a model; in the system's folder for temporary files often not.
    with TemporaryDirectory(dir=run, prefix="merged-") as folder:
        return upload(merge(run, Path(folder) / run.resolve().name))


def _upload(run: Path, *, repo: str, private: bool, revision: str | None, create_pr: bool, hub: Callable) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = _files(run, repo)
    api = HfApi()
    with hub():
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(
                f"{repo} exists and is public, but a private push was asked for: make it private in its settings, "
                "name another repository, or push with --public."
            )
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=revision)
        stale = [name for name in there if _is_published(name) and name not in files]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Push {run.resolve().name} with lastmile_trl",
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or f"{api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")


def _is_published(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PUBLISHED)


def _files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """What is pushed: name in the repository -> file, or content where it differs from the file."""
    if not any(run.glob("*.safetensors")):
        raise InputError(f"{run} holds no model (no *.safetensors): let `lastmile run` finish it first.")
    (run / "README.md").write_text(card(run, repo=repo), encoding="utf-8")
    files: dict[str, Path | bytes] = {file.name: file for file in sorted(run.iterdir()) if _is_published(file.name)}
    files["recipe.yaml"] = _yaml(_recipe(run)).encode()
    if "evaluation.json" in files:
        files["evaluation.json"] = json.dumps(_evaluation(run), indent=1).encode()
    if (adapter := _json(run / "adapter_config.json")) != _portable(adapter):
        files["adapter_config.json"] = json.dumps(_portable(adapter), indent=2, sort_keys=True).encode()
    _check_no_token(run, files)
    return files


def _check_no_token(run: Path, files: dict[str, Path | bytes]) -> None:
    from huggingface_hub import get_token

    token = get_token().encode()
    for name, content in files.items():
        if name.endswith(".safetensors"):
            continue
        if token in (content if isinstance(content, bytes) else content.read_bytes()):
            raise InputError(f"{run / name} holds your Hub token, so nothing was pushed: remove it from that file.")


def _full_name(repo: str, may_write: bool = True) -> str:
    """The repository's name with its namespace, after asking the Hub who the token belongs to and what it may do."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not the name of a Hub repository: write `name` or `me/name`.") from error
    if not get_token():
        raise InputError("There is no Hub token to push with: run `hf auth login` or set HF_TOKEN.")
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise InputError("The Hub refuses the token: run `hf auth login` or set HF_TOKEN to a valid one.") from error
    name = repo if "/" in repo else f"{user['name']}/{repo}"
    if may_write:
        _check_may_write(user, name)
    return name


def _check_may_write(user: dict[str, Any], repo: str) -> None:
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"The token of {user['name']} may only read: make one that may write, then `hf auth login` or set HF_TOKEN."
        )
    writable = [user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")]
    owner = repo.split("/")[0]
    if owner not in writable:
        raise InputError(f"{user['name']} may not push to {owner!r}, only to {', '.join(writable)}.")


@contextmanager
def _reaching_hub(failure: str, remedy: str = "; check the connection") -> Iterator[None]:
    """Say in one sentence what any of the client's many errors means. Only calls to the Hub belong inside."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError

    get_session().timeout = PATIENCE
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client raises all of these
        raise RunError(f"{failure} ({_cause(error)}){remedy}.") from error


def _cause(error: BaseException) -> str:
    """What the Hub answered, or else the innermost error's first line."""
    from huggingface_hub.errors import HfHubHTTPError

    while not isinstance(error, HfHubHTTPError) and error.__cause__:
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return _first_line(error)
    response = error.response
    said = f": {error.server_message}" if error.server_message else ""
    return f"the Hub answered {response.status_code} {response.reason_phrase}{said}".rstrip(".")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
