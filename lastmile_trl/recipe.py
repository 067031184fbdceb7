"""A recipe is one YAML file, one stage: read, overridden, checked against each section's dataclass, put in order."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import InputError, did_you_mean, first_line, unknown
from .schema import accepts, annotations, choices, default
from .trainers.guidance_config import MODES, GuidanceConfig


@dataclass
class Data:
    """Where the rows come from and how they become prompts."""

    path: str  # hub id, json/jsonl/csv/parquet file or folder, or synthetic:<name>
    references: str = "references"  # column with one text or a list of texts
    prompt: str | None = None  # template over columns, plain text
    messages: list | None = None  # the same as chat messages: [{role, content}, ...]
    group_by: str | None = None  # rows alike in this column are one row, with the references of all
    split_at: int | None = None  # words of a reference that are the column `beginning`; the rest is the reference
    name: str | None = None  # configuration of a hub data set
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None  # held-out rows; without it `held_out` rows are set aside from `split`
    held_out: int = 200
    shorten: str | None = None  # the column that is cut when the prompt is too long
    max_prompt_tokens: int = 512
    max_reference_tokens: int | None = None  # longer references are left out of SFT: a cut one teaches not to end
    max_rows: int | None = None
    strict: bool = False  # refuse rows with an empty prompt or reference, do not just count them


@dataclass
class Preferences:
    """Pairs of a better and a worse answer: where they come from, and what the model that learns them must reach."""

    chosen: str | None = None  # of ready pairs: the column with the better answer, a text or chat messages
    rejected: str | None = None  # and the one with the worse answer
    negatives: dict | None = None  # category -> how many bad answers to make of a row's references
    source: str | None = (
        None  # column with the text that answers are made from; default: the one that data.shorten cuts
    )
    samples: dict | None = None  # `method: pairs`: answers of the model, ranked by the rewards of the recipe
    filter: dict | None = None  # `method: pairs`: keep the pairs whose answers the model itself might have given
    require: dict = field(default_factory=dict)  # `method: reward`: what stops the stage, and those after it


@dataclass
class Evaluation:
    """What is measured on held-out rows, during and after training."""

    every: int | None = None  # steps between two looks during training
    rows: int = 200
    metrics: list = field(default_factory=lambda: ["rouge", "length", "repetition"])
    max_new_tokens: int | None = None  # default: training.max_completion_length, or 256
    batch_size: int = 32
    sampled: bool = True  # also sample, beside greedy decoding
    samples: int = 1  # so many of each row, whose value is their mean
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    runs: list | None = (
        None  # `method: evaluate`: run folders, the baseline first; `reward`: whose outputs it is tried on
    )
    use_vllm: bool = False  # `method: evaluate`: decode with vLLM
    likelihood: bool = False  # also measure the perplexity of the references, and samples' KL from the SFT run
    baselines: list = field(default_factory=list)  # shown beside the runs: lead, reference, best_of_n, base, sft
    postprocess: list | None = None  # what is also shown post-processed; default: the first run with all its seeds
    steps: list = field(default_factory=lambda: ["first_block", "repeated_sentences", "unfinished_end"])  # of that
    notes: list = field(default_factory=list)  # paragraphs for the report


@dataclass
class Hub:
    """Where the result goes."""

    push: bool = False
    repo: str | None = None
    private: bool = True
    merge: bool = False  # push a plain model, the adapter merged into its base
    revision: str | None = None


@dataclass
class EvaluateConfig:
    """The `training` section of `method: evaluate`: only where the results go."""

    output_dir: str


@dataclass
class PairsConfig:
    """The `training` section of `method: pairs`: where they go, and the seed of what is drawn."""

    output_dir: str
    seed: int = 42


METHODS = {  # method -> the class of its `training` section
    "sft": "trl.trainer.sft_config:SFTConfig",
    "grpo": "trl.trainer.grpo_config:GRPOConfig",
    "rloo": "trl.trainer.rloo_config:RLOOConfig",
    "ppo": "lastmile_trl.trainers.ppo_config:PPOConfig",
    "pairs": "lastmile_trl.recipe:PairsConfig",
    "reward": "trl.trainer.reward_config:RewardConfig",
    "dpo": "trl.trainer.dpo_config:DPOConfig",
    "evaluate": "lastmile_trl.recipe:EvaluateConfig",
}
RL = ("grpo", "rloo", "ppo")
WITH_PAIRS = ("pairs", "reward", "dpo")
IN_ONE_PROCESS = ("pairs", "evaluate")
SECTIONS = {  # section -> its class; `training` depends on the method, `rewards` is a list
    "model": "trl.trainer.model_config:ModelConfig",
    "data": "lastmile_trl.recipe:Data",
    "preferences": "lastmile_trl.recipe:Preferences",
    "guidance": "lastmile_trl.trainers.guidance_config:GuidanceConfig",
    "evaluation": "lastmile_trl.recipe:Evaluation",
    "hub": "lastmile_trl.recipe:Hub",
}

POSITIVE = {  # section -> numbers that make no sense below 1
    "data": ("split_at", "held_out", "max_prompt_tokens", "max_reference_tokens", "max_rows"),
    "evaluation": ("every", "rows", "max_new_tokens", "batch_size", "samples"),
    "training": ("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length"),
}

LIMITS = {  # section.key -> which numbers make sense, and how that is said
    "model.lora_r": (lambda value: value >= 1, "at least 1"),
    "model.lora_alpha": (lambda value: value >= 1, "at least 1"),
    "model.lora_dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "training.learning_rate": (lambda value: 0 <= value <= 1, "at least 0 and at most 1"),
    "training.critic_learning_rate": (lambda value: 0 <= value <= 1, "at least 0 and at most 1"),
    "training.num_train_epochs": (lambda value: 0 < value < math.inf, "above 0"),
    "training.num_generations": (lambda value: value >= 1, "at least 1"),
    "training.num_iterations": (lambda value: value >= 1, "at least 1"),
    "training.steps_per_generation": (lambda value: value >= 1, "at least 1"),
    "training.generation_batch_size": (lambda value: value >= 1, "at least 1"),
    "training.max_steps": (lambda value: value == -1 or value >= 1, "at least 1, or -1 for none"),
    "training.logging_steps": (lambda value: value > 0, "above 0"),
    "training.save_steps": (lambda value: value > 0, "above 0"),
    "training.seed": (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"),
    "training.temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "training.top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "evaluation.temperature": (lambda value: 0 < value < math.inf, "above 0"),
    "evaluation.top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}

LOSSES = {  # method -> what training.loss_type may be, where TRL's config does not list it
    **dict.fromkeys(("grpo", "ppo"), ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")),
    "dpo": ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
            "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
}  # fmt: skip

# Keys that the config classes have, or had, and that a recipe says elsewhere.
HINTS = {
    "torch_dtype": "it is called model.dtype now",
    "warmup_ratio": "it is called training.warmup_steps now: a number below 1 is a share of all steps",
    "max_prompt_length": "prompts are shortened by data.max_prompt_tokens, and only in the column data.shorten",
    "max_seq_length": "set data.max_prompt_tokens and data.max_reference_tokens instead: they never cut the end off",
    "max_length": "set data.max_prompt_tokens and data.max_reference_tokens instead: they never cut the end off",
    "overwrite_output_dir": "use `lastmile run --force` to replace an earlier run",
    "reward_weights": "write the weight beside each reward: `- rouge: {weight: 1.0}`",
    "model_init_kwargs": "use the model section",
    "push_to_hub": "use the hub section: `hub: {push: true, repo: me/my-model}`",
    "hub_model_id": "use hub.repo",
    "hub_private_repo": "use hub.private",
    "trust_remote_code": "only the flag --trust-remote-code of the command lets code of a model repository run",
    "hub_token": "log in with `hf auth login` or set HF_TOKEN: a token in a recipe ends up in files",
    "eval_strategy": "use evaluation.every",
    "eval_steps": "use evaluation.every",
    "do_eval": "use evaluation.every",
    "save_only_model": "a run could not go on from such a checkpoint: set save_total_limit to need less room",
    "enable_jit_checkpoint": "a run that gets SIGTERM or Ctrl-C saves before it leaves",
    "resume_from_checkpoint": "`lastmile run` continues an unfinished run by itself",
    "chat_template_kwargs": "SFT and evaluation would not see it: choose a model whose template needs none",
    "chat_template_path": "RL and evaluation would not see it: save the tokenizer with its template beside the model",
    "eos_token": "the tokenizer's own end token is used in training and evaluation alike",
}


LONGEST_NAME = 255  # bytes, that usual file systems take
ALIASES = 20  # of anchors within anchors, a few dozen stand for more than any memory holds


@dataclass
class Recipe:
    """One stage: what a YAML file and the overrides on the command line say."""

    source: Path
    values: dict[str, Any]  # the resolved file: what --dry-run prints and recipe.yaml keeps
    overrides: tuple[str, ...] = ()  # that led from the file to these values

    def __post_init__(self):
        _check(self.values, self.source)

    @property
    def method(self) -> str:
        """What the stage does."""
        return self.values["method"]

    @property
    def model(self) -> dict[str, Any]:
        """Keys of ``trl.ModelConfig``."""
        return self.values.get("model", {})

    @property
    def training(self) -> dict[str, Any]:
        """Keys of the method's TRL config."""
        return self.values["training"]

    @property
    def rewards(self) -> list:
        """The entries of the rewards section."""
        return self.values.get("rewards", [])

    @cached_property
    def data(self) -> Data:
        """The data section."""
        return Data(**self.values["data"])

    @cached_property
    def preferences(self) -> Preferences:
        """The preferences section."""
        return Preferences(**self.values.get("preferences", {}))

    @cached_property
    def guidance(self) -> GuidanceConfig | None:
        """The guidance section; None where no guide takes part in roll-outs."""
        return GuidanceConfig(**self.values["guidance"]) if "guidance" in self.values else None

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation section, with its defaults."""
        return Evaluation(**self.values.get("evaluation", {}))

    @cached_property
    def hub(self) -> Hub:
        """The hub section, with its defaults."""
        return Hub(**self.values.get("hub", {}))

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.training["output_dir"])

    @property
    def seed(self) -> int:
        """The seed of what is drawn; 42 is that of transformers' trainers."""
        return self.training.get("seed", 42)

    @property
    def starts_from(self) -> list[str]:
        """The models whose outputs or weights this stage goes on from: hub ids, folders, earlier runs."""
        runs = list(self.evaluation.runs or []) if self.method in ("evaluate", "reward") else []
        return runs if self.method == "evaluate" else [self.model["model_name_or_path"], *runs]

    @property
    def guide_model(self) -> str | None:
        """The model that guides, where a model does."""
        if self.guidance is None:
            return None
        from .guides import kind_of

        return self.guidance.guide if kind_of(self.guidance.guide) == "model" else None

    @property
    def builds_on(self) -> list[str]:
        """The models that this stage goes on from, and the one that guides it."""
        return [*self.starts_from, *([self.guide_model] if self.guide_model else [])]

    @property
    def needs(self) -> list[str]:
        """All that may be the run folder of an earlier stage: models, reward models, a critic, a guide, pairs."""
        listed = [*self.rewards, *self.evaluation.metrics]
        given = [arguments for entry in listed if isinstance(entry, dict) for arguments in entry.values()]
        models = [each["model"] for each in given if isinstance(each, dict) and isinstance(each.get("model"), str)]
        critic = [self.training["critic"]] if isinstance(self.training.get("critic"), str) else []
        return [*self.builds_on, self.data.path, *models, *critic]

    def yaml(self) -> str:
        """The resolved recipe as text."""
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(OmegaConf.create(self.values))


def max_new_tokens(values: dict[str, Any]) -> int:
    """How many tokens evaluation generates: what the recipe says, else what training generates, else 256."""
    said = values.get("evaluation", {}).get("max_new_tokens")
    return said or values.get("training", {}).get("max_completion_length") or 256


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides.

    >>> recipe = load("recipes/samsum/grpo.yaml", ["training.learning_rate=2e-5", "rewards.rouge.weight=0.5"])
    >>> recipe.training["learning_rate"], recipe.rewards[0]["rouge"]["weight"]
    (2e-05, 0.5)
    """
    from omegaconf import OmegaConf

    path = locate(path)
    with _said_of(path):
        text = path.read_bytes().decode()
        if resolver := re.search(r"\$\{[^}]*:[^}]*\}", text + " ".join(overrides)):
            raise InputError(f"{path}: {resolver[0]} is not allowed, only another key as in ${{training.seed}}.")
        config = _parse(path, text)
        for said in overrides:
            override(config, said)
        values = OmegaConf.to_container(config, resolve=True)
    if not isinstance(values.get("training", {}), dict):
        raise InputError(f"{path}: section `training` must hold `key: value` lines, not {values['training']!r}.")
    values["training"] = {"output_dir": _default_run(path), **values.get("training", {})}
    return Recipe(path, values, tuple(overrides))


def read(path: Path) -> dict[str, Any]:
    """The sections of a recipe's file as they stand there, whether they are right or not."""
    from omegaconf import OmegaConf

    with _said_of(path):
        return OmegaConf.to_container(_parse(path, path.read_bytes().decode()))


def _parse(path: Path, text: str) -> Any:
    """The text as an OmegaConf of sections."""
    import yaml
    from omegaconf import OmegaConf

    aliases = [
        token
        for token in yaml.scan(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if isinstance(token, yaml.AliasToken)
    ]
    if len(aliases) > ALIASES:
        line = aliases[ALIASES].start_mark.line + 1
        raise InputError(
            f"{path}, line {line}: more than {ALIASES} aliases such as *{aliases[0].value}: write some out."
        )
    config = OmegaConf.create(text)
    if not OmegaConf.is_dict(config) or not config:
        raise InputError(f"{path} holds no recipe: expected sections such as `method:` and `data:`.")
    return config


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Say in a sentence what cannot be read in a recipe's file."""
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: save it as that, or name another file.") from error
    except (YAMLError, ValueError) as error:  # of a number that is none
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(f"{path}{line} is not valid YAML: {_problem(error)}.") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0].rstrip('.')}.") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply: a section holds `key: value` lines.") from error


def _problem(error: Exception) -> str:
    """What YAML finds wrong, without where."""
    return (getattr(error, "problem", None) or getattr(error, "reason", None) or first_line(error)).rstrip(".")


def override(config: Any, text: str) -> None:
    """Change an OmegaConf by ``a.b=value``; a reward is named as ``rewards.<name>.<argument>``."""
    from omegaconf import OmegaConf

    key, equals, value = text.partition("=")
    if not equals or "." not in key and key != "method":
        raise InputError(f"{text!r} is not an override: write section.key=value, as in training.learning_rate=2e-5.")
    section, *rest = key.split(".")
    if section == "rewards" and rest and not rest[0].isdigit():
        rest[0] = _reward_place(config, rest[0])
    try:
        OmegaConf.update(config, ".".join([section, *rest]), _override_value(config, key, value), merge=False)
    except (ValueError, TypeError, LookupError) as error:  # a key of what has no keys
        raise InputError(f"{text!r} overrides nothing that the recipe has ({first_line(error)}).") from error


def _override_value(config: Any, key: str, text: str) -> Any:
    """YAML, so that numbers and lists are what they look like; a template such as ``{input}`` stays text."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    section, _, name = key.partition(".")
    paths = {**SECTIONS, "training": METHODS.get(str(config.get("method")), METHODS["sft"])}
    annotation = annotations(paths[section]).get(name, "") if section in paths else ""
    kinds = annotation.split(" | ")
    mapping = text.startswith("{") and "dict" in kinds
    if kinds[0] == "str" and text not in ("", "null") and text[:1] not in "\"'" and not mapping:
        return text
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text or 'null'}"))["value"]
    except (YAMLError, ValueError) as error:
        raise InputError(f"The override {key}={text} has no valid YAML value: {_problem(error)}.") from error
    # To YAML `no` is a boolean, to save_strategy a word.
    wants_word = isinstance(value, bool) and "str" in kinds and "bool" not in kinds
    return text if wants_word else value


def _reward_place(config: Any, name: str) -> str:
    """Where a reward's arguments stand, ``0.rouge``; an entry that is a bare name gets arguments to override."""
    entries = config.get("rewards") or []
    for index, entry in enumerate(entries):
        kind, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        if name in (kind, (arguments or {}).get("name")):
            if isinstance(entry, str):
                entries[index] = {kind: {}}
            return f"{index}.{kind}"
    raise InputError(f"The recipe has no reward {name!r} to override.")


def _default_run(path: Path) -> str:
    """``recipes/samsum/grpo.yaml`` -> ``runs/samsum/grpo``."""
    parts = path.with_suffix("").parts
    if "recipes" in parts:
        parts = parts[len(parts) - parts[::-1].index("recipes") :]
    elif path.is_absolute():
        parts = parts[-1:]
    return str(Path("runs", *parts))


def _check(values: dict[str, Any], source: Path) -> None:
    """Refuse unknown sections and keys, wrong types and missing keys, naming the nearest valid one."""
    method = values.get("method")
    if not isinstance(method, str) or method not in METHODS:
        if method is None:
            raise InputError(f"{source} has no `method:`; methods are {', '.join(METHODS)}.")
        raise InputError(f"{source}: {unknown('method', method, METHODS)}")
    for text in _texts(values):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(
                f"{source}: {text!r:.80} holds a zero byte or half a character, which no text may: drop it."
            )
    known = {name: annotations(path) for name, path in {**SECTIONS, "training": METHODS[method]}.items()}
    sections = ["method", "rewards", *known]
    for name, section in values.items():
        if name not in sections:
            raise InputError(f"{source}: unknown section {name!r}{did_you_mean(name, sections)}")
        if name == "rewards" and not isinstance(section, list):
            raise InputError(f"{source}: section `rewards` must be a list: `- rouge: {{weight: 1.0}}`.")
        if name not in known:
            continue
        if not isinstance(section, dict):
            raise InputError(f"{source}: section `{name}` must hold `key: value` lines, not {section!r}.")
        for key, value in section.items():
            _check_key(method, name, key, value, known, source)
    _check_required(values, source)


def _texts(value: Any) -> Iterator[str]:
    """All texts in what a section holds, however deep."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _check_key(method: str, section: str, key: str, value: Any, known: dict[str, dict[str, str]], source: Path) -> None:
    if key in HINTS:
        raise InputError(f"{source}: {section}.{key} is not used here: {HINTS[key]}.")
    if key not in known[section]:
        elsewhere = [other for other in known if key in known[other]]
        hint = f": it belongs in section `{elsewhere[0]}`." if elsewhere else did_you_mean(key, known[section])
        raise InputError(f"{source}: unknown key {section}.{key}{hint}")
    annotation = known[section][key]
    if not accepts(annotation, value):
        raise InputError(f"{source}: {section}.{key} must be {annotation.replace(' | ', ' or ')}, not {value!r}.")
    allowed = LOSSES.get(method) if key == "loss_type" else None
    allowed = allowed or choices(METHODS[method] if section == "training" else SECTIONS[section], key)
    for one in value if isinstance(value, list) else [value]:
        if allowed and one is not None and one not in allowed:
            raise InputError(f"{source}: {section}.{key} must be one of {', '.join(allowed)}, not {one!r}.")
    fits, wanted = LIMITS.get(f"{section}.{key}", (None, ""))
    if fits and isinstance(value, int | float) and not fits(value):
        raise InputError(f"{source}: {section}.{key} must be {wanted}, not {value!r}.")


def _check_required(values: dict[str, Any], source: Path) -> None:
    method, data, evaluation = values["method"], values.get("data", {}), values.get("evaluation", {})
    if "path" not in data:
        raise InputError(f"{source}: data.path is missing: a hub id, a file or folder, or synthetic:<name>.")
    if bool(data.get("prompt")) == bool(data.get("messages")):
        raise InputError(f"{source}: give either data.prompt (plain text) or data.messages (chat).")
    for message in data.get("messages") or []:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InputError(f"{source}: data.messages holds {message!r}; write {{role: user, content: ...}}.")
    for name, keys in POSITIVE.items():
        for key in keys:
            value = values.get(name, {}).get(key)
            if value is not None and value < 1:
                raise InputError(f"{source}: {name}.{key} must be at least 1, not {value!r}.")
    if evaluation.get("samples", 1) > 1 and evaluation.get("sampled") is False:
        raise InputError(f"{source}: evaluation.samples draws nothing with evaluation.sampled: false: drop one.")
    run = values.get("training", {}).get("output_dir", "runs")
    if not run or any(len(part.encode()) > LONGEST_NAME for part in Path(run).parts):
        raise InputError(f"{source}: training.output_dir must name a folder in at most {LONGEST_NAME} letters.")
    for run in evaluation.get("runs") or []:
        if not isinstance(run, str) or not run:
            raise InputError(f"{source}: evaluation.runs holds {run!r}: name run folders or models.")
    repo = values.get("hub", {}).get("repo")
    if repo is not None and not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo):
        raise InputError(f"{source}: hub.repo {repo!r} is not the name of a Hub repository: write `me/my-model`.")
    if method in IN_ONE_PROCESS and values.get("hub", {}).get("push"):
        raise InputError(f"{source}: `method: {method}` makes no model to push: drop hub.push.")
    _check_guidance(values, source)
    if method == "evaluate":
        if not evaluation.get("runs"):
            raise InputError(f"{source}: evaluation.runs is missing: the run folders to compare, the baseline first.")
        if "model" in values or "rewards" in values:
            raise InputError(f"{source}: `method: evaluate` takes its models from evaluation.runs and has no rewards.")
        return
    if not values.get("model", {}).get("model_name_or_path"):
        raise InputError(f"{source}: model.model_name_or_path is missing: a hub id, a model folder or an earlier run.")
    if method in RL and not values.get("rewards"):
        raise InputError(f"{source}: `method: {method}` needs rewards, for example `- rouge: {{weight: 1.0}}`.")
    if method not in (*RL, "pairs") and values.get("rewards"):
        raise InputError(f"{source}: `method: {method}` does not use rewards; measure them in evaluation.metrics.")
    _check_preferences(values, source)
    _check_best(values, source)
    if values.get("hub", {}).get("push") and not values["hub"].get("repo"):
        raise InputError(f"{source}: hub.push is true but hub.repo is missing: write repo: me/my-model.")


def _check_best(values: dict[str, Any], source: Path) -> None:
    """The best checkpoint is known only of a trainer that evaluates by itself, whenever it saves."""
    training, every = values.get("training", {}), values.get("evaluation", {}).get("every")
    saves, loads = training.get("save_strategy", "steps"), training.get("load_best_model_at_end")
    key = "training.load_best_model_at_end: true" if loads else "training.save_strategy: best"
    if not loads and saves != "best":
        return
    if values["method"] != "reward":
        raise InputError(
            f"{source}: {key} goes by a loss on held-out pairs, which only `method: reward` has: leave it out."
        )
    if not every:
        raise InputError(f"{source}: {key} goes by the loss on held-out pairs: set evaluation.every, or leave it out.")
    if not loads and not training.get("metric_for_best_model"):
        raise InputError(f"{source}: {key} needs training.metric_for_best_model, such as eval_loss.")
    if saves == "best":
        return
    steps = training.get("save_steps", default(METHODS["reward"], "save_steps"))
    if saves != "steps" or steps % every:
        raise InputError(
            f"{source}: {key} needs a loss on held-out pairs for every checkpoint: set save_strategy: steps "
            f"and save_steps to a multiple of evaluation.every, {every}."
        )


def _check_preferences(values: dict[str, Any], source: Path) -> None:
    method, given = values["method"], values.get("preferences")
    if method not in WITH_PAIRS:
        if given is not None:
            raise InputError(f"{source}: `method: {method}` has no use for pairs: drop the section `preferences`.")
        return
    asked = Preferences(**given or {})
    if bool(asked.chosen) != bool(asked.rejected):
        raise InputError(
            f"{source}: preferences.chosen and preferences.rejected name the two columns of a pair: set both."
        )
    if not (asked.chosen or asked.negatives or asked.samples is not None):
        samples = "preferences.samples to rank answers of the model, " if method == "pairs" else ""
        raise InputError(
            f"{source}: `method: {method}` needs pairs: preferences.negatives to make bad answers of the references, "
            f"{samples}or preferences.chosen and preferences.rejected, the columns of ready pairs."
        )
    for key in ("samples", "filter"):
        if getattr(asked, key) is not None and method != "pairs":
            raise InputError(
                f"{source}: preferences.{key} asks the model: do it in a stage of `method: pairs`, whose run folder is "
                "data.path here."
            )
    if asked.require and method != "reward":
        raise InputError(f"{source}: preferences.require is for `method: reward`: drop it.")
    if method == "pairs" and bool(values.get("rewards")) != (asked.samples is not None):
        raise InputError(
            f"{source}: the rewards of `method: pairs` rank the samples of preferences.samples: give both."
        )


def _check_guidance(values: dict[str, Any], source: Path) -> None:
    if "guidance" not in values:
        return
    method, given, training = values["method"], values["guidance"], values.get("training", {})
    if method not in RL:
        raise InputError(
            f"{source}: `method: {method}` has no roll-outs to guide: drop the section `guidance`, or use "
            f"{', '.join(RL)}."
        )
    if "mode" not in given:
        raise InputError(f"{source}: guidance.mode is missing: one of {', '.join(MODES)}.")
    try:
        asked = GuidanceConfig(**given)
    except ValueError as error:
        raise InputError(f"{source}: section `guidance`: {error}") from error
    if asked.prefix_per == "completion" and method != "ppo":
        raise InputError(
            f"{source}: guidance.prefix_per: with the group baseline of `method: {method}` a prefix per completion "
            "teaches nothing: set it to group, or use `method: ppo`."
        )
    if training.get("use_vllm"):
        raise InputError(
            f"{source}: training.use_vllm does not work with guidance, whose roll-outs transformers writes: set it to "
            "false."
        )
    if not asked.rolls_out:
        return
    for key in ("missing_eos_penalty", "mask_truncated_completions"):
        if training.get(key) is not None and training[key] is not False:
            raise InputError(
                f"{source}: training.{key} looks at how the learner ends a text, and in mode {asked.mode} the guide "
                "ends it: drop the key."
            )
    if training.get("max_completion_length", 2) < 2:
        raise InputError(
            f"{source}: training.max_completion_length must be at least 2 in mode {asked.mode}: one token for the "
            "learner, one for the guide."
        )


# --- finding files -------------------------------------------------------------------------------------------------


def shipped(folder: str) -> Path:
    """A folder that ships with the package: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def locate(name: str | Path) -> Path:
    """A recipe file or folder: a path, or the name of a shipped one such as ``samsum/grpo``."""
    path = Path(name)
    for candidate in (path, Path(f"{name}.yaml")):
        if candidate.exists():
            return candidate
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    for candidate in (inside, inside.with_suffix(".yaml")):
        if not inside.is_absolute() and (shipped("recipes") / candidate).exists():
            return shipped("recipes") / candidate
    raise InputError(
        f"No recipe {str(name)!r}: not a file or folder here, and not a shipped one "
        f"(`lastmile recipes` lists those){did_you_mean(inside.with_suffix(''), shipped_names())}"
    )


def shipped_names() -> list[str]:
    """The shipped recipes, by name: ``samsum/grpo``."""
    root = shipped("recipes")
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def collect(names: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipes to run, in the order given; a folder's recipes come after the stages they start from."""
    recipes = []
    for name in names:
        path = locate(name)
        if path.is_dir():
            files = sorted(path.rglob("*.yaml"))
            if not files:
                raise InputError(f"{path} holds no recipe: no .yaml file in the folder.")
            recipes += _in_order([_load_in_folder(file, overrides) for file in files])
        else:
            recipes.append(load(path, overrides))
    runs: dict[Path, Recipe] = {}
    for recipe in recipes:
        if recipe.run in runs:
            raise InputError(
                f"{recipe.source} and {runs[recipe.run].source} both write to {recipe.run}: "
                "set another training.output_dir in one of them."
            )
        runs[recipe.run] = recipe
    return recipes


def _load_in_folder(path: Path, overrides: Sequence[str]) -> Recipe:
    """A stage among others: what `training.` says to those that train, the others need not know, but for a seed."""
    if (method := load(path).method) in IN_ONE_PROCESS:
        known = ("training.seed=",) if method == "pairs" else ()
        overrides = [text for text in overrides if not text.startswith("training.") or text.startswith(known)]
    return load(path, overrides)


def _in_order(recipes: list[Recipe]) -> list[Recipe]:
    """Stable topological order: a stage comes after every stage whose run folder it starts from."""
    ordered: list[Recipe] = []
    waiting = list(recipes)
    while waiting:
        pending = {recipe.run for recipe in waiting}
        ready = [r for r in waiting if not pending & {Path(need) for need in r.needs} - {r.run}]
        if not ready:
            raise InputError(f"{waiting[0].source} and {waiting[-1].source} start from each other.")
        ordered += ready
        waiting = [recipe for recipe in waiting if recipe not in ready]
    return ordered


def short_names(runs: list[str]) -> dict[str, Path]:
    """Run folders by the shortest end of their path that tells them apart.

    >>> short_names(["runs/a/sft", "runs/a/grpo"])
    {'sft': PosixPath('runs/a/sft'), 'grpo': PosixPath('runs/a/grpo')}
    >>> list(short_names(["runs/a/sft", "runs/b/sft"]))
    ['a/sft', 'b/sft']
    """
    paths = [Path(run) for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError(f"A run is named twice: {', '.join(runs)}.")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return {"/".join(path.parts[-length:]): path for path in paths}
