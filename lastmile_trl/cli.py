"""The ``lastmile`` command: words to calls. Nothing heavy is imported until a command needs it."""

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, RunError
from .files import file_in_the_way, is_empty, write_whole
from .screen import note

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .launch import Launch
    from .recipe import Recipe

EXAMPLES = """examples:
  lastmile quickstart                          the whole pipeline on this machine, offline
  lastmile copy samsum my_task                 recipes to edit
  lastmile check my_task/grpo.yaml             what would go wrong, before a model loads
  lastmile run my_task training.seed=1         all stages of a folder, in order
  lastmile run my_task/grpo.yaml --accelerate multi_gpu --num_processes 8
"""


BARS = 21  # of a distribution
WATCH_EVERY = 10.0  # seconds
LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255
ROWS_SHOWN = 20  # up to so many rows are printed one by one; --json prints any number


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 for wrong input, 1 for a failed run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        # What accelerate launch starts: `-m lastmile_trl STAGE.yaml key=value`.
        return _guarded(lambda: _stage(arguments[0], arguments[1:]), debug="LASTMILE_DEBUG" in os.environ)
    parser = _parser()
    words, more = parser.parse_known_args(arguments)
    # argparse takes no positional word after an option; an override may stand anywhere.
    if unknown := [word for word in more if word.startswith("-") or "=" not in word or not hasattr(words, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    words.overrides = more
    if getattr(words, "trust_remote_code", False):
        from .models import TRUST

        os.environ[TRUST] = "1"  # for this process and the stages it launches
    _guarded(lambda: words.call(words), debug=words.debug)


def _guarded(call: Callable[[], int], debug: bool) -> None:
    """Call, and leave with its exit code; an error is one line."""
    sys.path.append(os.getcwd())  # a recipe may name a reward in a file of the folder one works in
    try:
        sys.exit(call())
    except (InputError, RunError) as error:
        if debug:
            raise
        note(f"Error: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # `lastmile recipes | head`
        sys.stdout = None
        sys.exit(0)
    except KeyboardInterrupt:
        note("Stopped.")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        note(f"Error: {type(error).__name__}: {error}".rstrip() + " (--debug shows where)")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lastmile",
        description="Fine-tune a language model in its last mile: reference outputs, no human preferences.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, call: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, allow_abbrev=False, help=help, description=help)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        added.set_defaults(call=call)
        return added

    quickstart = command("quickstart", _quickstart, "the embedded pipeline, offline: SFT, GRPO, evaluation, report")
    quickstart.add_argument("--seed", type=int, default=0)
    quickstart.add_argument("--output", default="runs/quickstart", help="folder for the three runs")
    _add_launch_words(quickstart)

    command("recipes", _recipes, "the shipped recipes, a line each")

    rewards = command("rewards", _rewards, "the rewards, a line each; or all about one")
    rewards.add_argument("name", nargs="?", help="what it computes, how it is gamed, its arguments")
    rewards.add_argument("--markdown", action="store_true", help="as Markdown; without a name the whole page")

    copy = command("copy", _copy, "copy a shipped recipe, or a folder of them, to edit")
    copy.add_argument("name")
    copy.add_argument("destination", type=Path)

    check = command("check", _check, "find what would stop a recipe, before a model loads")
    check.add_argument("recipe", nargs="+", help="recipes, folders, and section.key=value overrides")
    check.set_defaults(overrides=[])
    check.add_argument("--accelerate", help="a shipped accelerate config or a file")
    check.add_argument("--num_processes", type=int)

    run = command("run", _run, "run recipes in order, each stage under accelerate launch")
    run.add_argument("recipe", nargs="+", help="recipes, folders, and section.key=value overrides")
    run.set_defaults(overrides=[])
    _add_launch_words(run)

    for name, what in {
        "pairs": "make the pairs of a recipe, a dataset to look at: train.jsonl, validation.jsonl",
        "filter": "the pairs of a recipe, without those that its model would hardly write itself",
    }.items():
        pairs = command(name, _pairs, what)
        pairs.add_argument("recipe", help="one with a section `preferences`")
        pairs.set_defaults(overrides=[], filters=name == "filter")
        pairs.add_argument("--output", type=Path, help="default: runs/<task>/<recipe>-pairs, or -filtered")
        pairs.add_argument("--force", action="store_true", help="replace what is there")
        _add_trust(pairs)

    score = command("score", _score, "rewards for the rows of a file with a `prediction` and a `references` column")
    score.add_argument("file", type=Path)
    score.add_argument("--reward", action="append", required=True, metavar="NAME[:k=v,...]")
    score.add_argument("--json", action="store_true", help="print every row as a line of JSON")

    evaluate = command("evaluate", _evaluate, "compare runs on held-out rows, the baseline first")
    evaluate.add_argument("run", nargs="+", help="run folders or models")
    evaluate.add_argument("--data", required=True, help="the recipe whose data and evaluation sections to use")
    evaluate.set_defaults(overrides=[])
    evaluate.add_argument("--output", type=Path, help="default: runs/evaluate/<task>/<names of the runs>")
    evaluate.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="METRIC>=NUMBER",
        help="exit with 1 unless the last run's greedy outputs reach this; RUN:METRIC<NUMBER names another; repeatable",
    )

    report = command("report", _report, "rebuild report.html and evaluation.md of a run, or watch it train")
    report.add_argument("run", nargs="*", type=Path)
    report.add_argument(
        "--watch",
        nargs="?",
        type=_seconds_or_run,
        const=WATCH_EVERY,
        metavar="SECONDS",
        help=f"renew the page every few seconds (default {WATCH_EVERY:.0f}) until the run is done",
    )

    generate = command("generate", _generate, "try a run or a model")
    generate.add_argument("run", type=Path)
    prompts = generate.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="the whole prompt, as the model sees it")
    prompts.add_argument("--file", help="rows that the run's recipe makes prompts of")
    generate.add_argument("--max_new_tokens", type=int, default=256)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")

    merge = command("merge", _merge, "merge an adapter into its unquantised base: a plain model")
    merge.add_argument("run", type=Path)
    merge.add_argument("destination", type=Path)

    push = command("push", _push, "push a run to the Hugging Face Hub, with its card")
    push.add_argument("run", type=Path)
    push.add_argument("repo", help="me/my-model")
    push.add_argument("--public", dest="private", action="store_false", help="the default is a private repository")
    push.add_argument("--private", dest="private", action="store_true", default=True, help=argparse.SUPPRESS)
    push.add_argument("--merge", action="store_true", help="push a plain model instead of an adapter")
    push.add_argument("--revision")
    push.add_argument("--create-pr", action="store_true", help="propose the files as a pull request")

    _add_trust(check, run, score, evaluate, generate, merge, push)

    return parser


def _add_trust(*parsers: argparse.ArgumentParser) -> None:
    """No recipe can say this: a recipe may come from anywhere."""
    for parser in parsers:
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="let code that comes with a model run on this machine"
        )


def _add_launch_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accelerate", help="a shipped accelerate config (cpu, single_gpu, multi_gpu, ...) or a file")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--force", action="store_true", help="run again what is finished, replace what is there")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipes and the exact commands")


def _seconds_or_run(word: str) -> float | Path:
    """What stands after `--watch`: seconds, or already a run."""
    try:
        return float(word)
    except ValueError:
        return Path(word)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Recipes apart from overrides."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides


# --- recipes -------------------------------------------------------------------------------------------------------


def _recipes(words: argparse.Namespace) -> int:
    from .recipe import shipped, shipped_names

    for name in shipped_names():
        first = (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        _print(f"{name:26}{first.lstrip('# ')}")
    return 0


def _rewards(words: argparse.Namespace) -> int:
    from .rewards.page import describe, overview, page

    if words.name:
        _print(describe(words.name).markdown() if words.markdown else describe(words.name).text())
    elif words.markdown:
        sys.stdout.write(page())
    else:
        for name, what, _ in overview():
            _print(f"{name:24}{what}")
    return 0


def _copy(words: argparse.Namespace) -> int:
    from .recipe import locate, shipped

    source = locate(words.name)
    if shipped("recipes") not in source.parents:
        raise InputError(f"{words.name!r} is a path here, not a shipped recipe; `lastmile recipes` lists those.")
    destination = words.destination
    if source.is_file() and (destination.is_dir() or not destination.suffix):
        destination = destination / source.name
    if destination.exists():
        raise InputError(f"{destination} exists already: choose another place, or delete it.")
    if file := file_in_the_way(destination):
        raise InputError(f"{destination} lies in {file}, which is a file: choose another place.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copy(source, destination)
    else:
        destination.mkdir()
        for file in source.glob("*.yaml"):
            text = _renamed(file.read_text(encoding="utf-8"), source.name, destination)
            (destination / file.name).write_text(text, encoding="utf-8")
    _print(str(destination))
    return 0


def _renamed(text: str, task: str, destination: Path) -> str:
    """A copied recipe writes to run folders of its own, and its head names the copy.

    >>> _renamed("# Run: lastmile run e2e/sft\\noutput_dir: runs/e2e/sft", "e2e", Path("mine"))
    '# Run: lastmile run mine/sft\\noutput_dir: runs/mine/sft'
    """
    text = text.replace(f"runs/{task}/", f"runs/{destination.name}/")
    return re.sub(rf"(?<![\w/-]){re.escape(task)}/(?=\w)", f"{destination}/", text)


# --- check and run -------------------------------------------------------------------------------------------------


def _check(words: argparse.Namespace) -> int:
    from .launch import Launch
    from .preflight import check
    from .recipe import collect

    launch = Launch.choose(words.accelerate, words.num_processes)
    recipes = collect(*_split([*words.recipe, *words.overrides]))
    problems, upcoming, sound = 0, {}, []
    for recipe in recipes:
        findings = check(recipe, launch.processes, upcoming, distributed=launch.distributed, stages=recipes)
        if not findings.problems:
            sound.append((recipe, dict(upcoming)))
        upcoming[recipe.run] = recipe
        _print(f"{recipe.source}: {'to mend' if findings.problems else 'nothing to mend'}")
        for number, problem in enumerate(findings.problems, 1):
            _print(f"  {number}. {problem}")
        for text in findings.warnings:
            _print(f"  ! {text}")
        for text in findings.notes:
            _print(f"  - {text}")
        problems += len(findings.problems)
    with _apart() as apart:  # after all that is found in no time
        for recipe, earlier in sound:
            text, warning = _memory(recipe, launch, earlier, apart)
            if text:
                _print(f"{recipe.source}: memory\n  - {text}")
            if warning:
                _print(f"  ! {warning}")
    return 2 if problems else 0


def _memory(
    recipe: "Recipe", launch: "Launch", upcoming: "dict[Path, Recipe]", apart: "Executor"
) -> tuple[str | None, str | None]:
    """A note on the memory a stage takes, and a warning; computed apart, as this process stays while stages run."""
    from .memory import can_be_told, told

    if launch.sharded or not can_be_told(recipe, upcoming):
        return None, None
    asked = told, recipe, launch.processes, launch.cpu, upcoming
    try:
        return told(*asked[1:]) if "torch" in sys.modules else apart.submit(*asked).result()
    except Exception as error:  # a model that cannot be tried without contents can be trained all the same
        return f"What memory it takes cannot be told ({type(error).__name__}: {error}).", None


def _apart() -> "Executor":
    """A process of its own, which starts once it is given something to do."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(1, get_context("spawn"))


def _run(words: argparse.Namespace) -> int:
    from .recipe import collect

    return _run_stages(collect(*_split([*words.recipe, *words.overrides])), words)


def _run_stages(recipes: "list[Recipe]", words: argparse.Namespace) -> int:
    """Check all stages first, then run them in order, each in its own process, up to the first failure."""
    from .launch import Launch, start
    from .memory import is_small
    from .preflight import check
    from .recipe import IN_ONE_PROCESS
    from .run_folder import lacks_push

    launch = Launch.choose(words.accelerate, words.num_processes)
    if not words.dry_run:
        launch.check_devices()
    upcoming: dict[Path, Recipe] = {}
    with _apart() as apart:
        for recipe in recipes:
            own = launch.alone() if recipe.method in IN_ONE_PROCESS else launch
            if words.dry_run:
                _print(f"# {recipe.source}\n{recipe.yaml()}# {own.shell(recipe)}\n")
            elif not _skips(recipe, words, upcoming):
                findings = check(recipe, own.processes, upcoming, words.force, own.distributed, recipes)
                for text in findings.problems:
                    note(f"Error: {recipe.source}: {text}")
                if findings.problems:
                    return 2
                text, warning = (None, None) if is_small(recipe, upcoming) else _memory(recipe, own, upcoming, apart)
                if text:
                    note(f"{recipe.source}: {text}")
                for line in [*findings.warnings, *([warning] if warning else [])]:
                    note(f"Warning: {recipe.source}: {line}")
                upcoming[recipe.run] = recipe
    if words.dry_run:
        return 0
    for number, recipe in enumerate(recipes, 1):
        title = f"stage {number} of {len(recipes)}: {recipe.method} -> {recipe.run}"
        if _skips(recipe, words, ()):
            note(f"{title}: finished already, skipped (--force runs it again)")
            if lacks_push(recipe):
                note(f"Warning: {recipe.run} is not known to have been pushed: {_how_to_push(recipe)}.")
            _show(recipe.run)
            continue
        note(title)
        started = time.monotonic()
        own = launch.alone() if recipe.method in IN_ONE_PROCESS or _only_evaluates(recipe, words) else launch
        environment = own.environment(words.debug, words.force)
        code = start(own.command(recipe, "lastmile_trl.launch"), environment)
        if code > 128:
            note(f"{title} was stopped; the same command{' without --force' * words.force} {_what_is_left(recipe)}.")
            return code
        if code:
            note(f"{title} failed; the stages after it were not started.")
            return 1
        note(f"{title}: done in {time.monotonic() - started:.0f} s")
        _show(recipe.run)
    return 0


def _what_is_left(recipe: "Recipe") -> str:
    """What a stage that was stopped does when it is started again."""
    from .checkpoints import last_whole
    from .run_folder import is_trained, lacks_push

    if lacks_push(recipe):
        return f"skips it, as it is finished: {_how_to_push(recipe)}"
    if is_trained(recipe):
        return "does what comes after its training"
    checkpoint = last_whole(recipe.run)
    return f"goes on from {checkpoint}" if checkpoint else "begins it again"


def _how_to_push(recipe: "Recipe") -> str:
    from .hub import command, options_of

    return f"push it with `{command(recipe.run, recipe.hub.repo, **options_of(recipe))}`"


def _skips(recipe: "Recipe", words: argparse.Namespace, upcoming: Collection[Path]) -> bool:
    from .run_folder import is_done

    return not words.force and is_done(recipe) and not {*upcoming} & {Path(need) for need in recipe.needs}


def _only_evaluates(recipe: "Recipe", words: argparse.Namespace) -> bool:
    from .run_folder import is_trained

    return not words.force and is_trained(recipe)


def _stage(recipe: str, overrides: Sequence[str]) -> int:
    import logging
    import warnings

    # Said by TRL and transformers about their own code, at every start.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    from .recipe import load
    from .train import run

    disable_progress_bar()  # of loading and writing weights; training has its own
    run(load(recipe, overrides))
    return 0


def _pairs(words: argparse.Namespace) -> int:
    """`method: pairs` with the data, the model and the preferences of any recipe that has them."""
    from omegaconf import OmegaConf

    from . import preflight, train
    from .recipe import Recipe, load, override

    # What only `method: pairs` takes is said to that stage, not to the recipe it is made of.
    own = [text for text in words.overrides if text.startswith(("preferences.filter", "preferences.samples"))]
    source = load(words.recipe, [text for text in words.overrides if text not in own])
    output = words.output or source.run.with_name(f"{source.run.name}-{'filtered' if words.filters else 'pairs'}")
    values = {name: source.values[name] for name in ("model", "data", "rewards", "evaluation") if name in source.values}
    preferences = {key: value for key, value in source.values.get("preferences", {}).items() if key != "require"}
    if words.filters:
        preferences["filter"] = preferences.get("filter") or {}
    config = OmegaConf.create(
        {
            "method": "pairs",
            **values,
            "preferences": preferences,
            "training": {"output_dir": str(output), "seed": source.seed},
        }
    )
    for text in own:
        override(config, text)
    recipe = Recipe(source.source, OmegaConf.to_container(config))
    if problems := preflight.check(recipe, force=words.force).problems:
        raise InputError(" ".join(problems))
    train.run(recipe, words.force)
    _show(output)
    return 0


def _quickstart(words: argparse.Namespace) -> int:
    from .recipe import load, shipped

    runs = {name: Path(words.output, name) for name in ("sft", "grpo", "evaluate")}
    seed = f"training.seed={words.seed}"
    overrides = {
        "sft": [seed],
        "grpo": [seed, f"model.model_name_or_path={runs['sft']}"],
        "evaluate": [f"evaluation.runs=[{runs['sft']},{runs['grpo']}]"],
    }
    overrides = {name: [*more, f"training.output_dir={runs[name]}"] for name, more in overrides.items()}
    note("Three stages on made-up notes, nothing to download: about five minutes on two CPU cores.")
    recipes = [load(shipped("recipes") / "quickstart" / f"{name}.yaml", overrides[name]) for name in runs]
    return _run_stages(recipes, words)


# --- looking at results --------------------------------------------------------------------------------------------


def _show(run: Path) -> None:
    """What a run folder came to: of pairs how many, else table, answer, where the page is."""
    from rich.console import Console

    from .run_folder import stored_recipe

    method = stored_recipe(run).method
    if method == "pairs":
        from .preferences.stage import lines

        _print("\n".join([*lines(run), "", f"Pairs: {run}"]))
        return
    if method == "reward":
        from .evaluation.acceptance import table
        from .evaluation.acceptance import verdict as answer
    else:
        from .evaluation.comparison import answer
        from .evaluation.tables import table
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    Console(width=None if sys.stdout.isatty() else 200).print(table(result))
    _print(answer(result))
    _print(f"Report: {run / 'report.html'}")


def _score(words: argparse.Namespace) -> int:
    from . import rewards
    from .data import open_split
    from .recipe import Data

    if not words.file.is_file():
        raise InputError(f"{words.file} is no file: name one with a `prediction` and a `references` column.")
    chosen = rewards.build([_reward_entry(text) for text in words.reward])
    rows = [_scorable(row) for row in open_split(Data(path=str(words.file)), "train").to_list()]
    names = {name: None for row in rows for name in row}
    for reward in chosen:
        for column in reward.needs:
            if column not in (*names, *rewards.FROM_TRAINER):
                raise InputError(
                    f"Reward {reward.name!r} needs a column {column!r}, which {words.file} has not; columns are "
                    f"{', '.join(names)}."
                )
    if fitted := [reward.name for reward in chosen if hasattr(reward.function, "for_task")]:
        note(f"{', '.join(fitted)}: what is known of all rows is that of this file, not of a training set.")
    task = rewards.Task({name: [row.get(name) for row in rows] for name in names})
    scores = rewards.score(rewards.prepare(chosen, task), rows)
    if words.json:
        for number, row in enumerate(scores):
            _print(json.dumps({"row": number, **row}))
        return 0
    if len(rows) <= ROWS_SHOWN:
        for number, row in enumerate(scores):
            said = "  ".join(f"{name} {'no value' if value is None else f'{value:.4f}'}" for name, value in row.items())
            _print(f"row {number}: {said}")
    width = max(len(reward.name) for reward in chosen) + 2
    for reward in chosen:
        values = [row[reward.name] for row in scores if row[reward.name] is not None]
        _print(f"{reward.name:{width}}{_summary(values)}  ({len(values)} of {len(rows)} rows)")
    return 0


def _scorable(row: dict) -> dict:
    """A row as training would see it: an empty cell is an empty text, a number a text, references a list."""
    from .data import reference_cells
    from .rewards.base import cell_text

    cells = {name: row[name] for name in ("prediction", "completion", "text") if name in row}
    for name, cell in cells.items():
        row = {**row, "prediction" if name == "text" else name: cell if isinstance(cell, list) else cell_text(cell)}
    return {**row, "references": reference_cells(row["references"])} if "references" in row else row


def _summary(values: Sequence[float]) -> str:
    """The mean, and the distribution between the lowest and the highest value as a row of bars.

    >>> _summary([0.0, 0.5, 0.5, 1.0])
    'mean 0.5000   0.00 ▄         █         ▄ 1.00'
    """
    if not values:
        return "no value"
    low, high = min(values), max(values)
    if low == high:
        return f"mean {low:.4f}   always the same"
    counts = [0] * BARS
    for value in values:
        counts[min(int((value - low) / (high - low) * BARS), BARS - 1)] += 1
    bars = "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / max(counts))] for count in counts)
    return f"mean {sum(values) / len(values):.4f}   {low:.2f} {bars} {high:.2f}"


def _reward_entry(text: str) -> dict:
    """An entry of a recipe's rewards, from a word of the command line.

    >>> _reward_entry("format:choices=[left, right],gate=1")
    {'format': {'choices': ['left', 'right'], 'gate': 1}}
    >>> _reward_entry("format:pattern='a{1,3}'")
    {'format': {'pattern': 'a{1,3}'}}
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from .rewards import REGISTRY

    name, _, arguments = text.partition(":")
    if name not in REGISTRY:  # package.module:attribute[:k=v]
        attribute, _, arguments = arguments.partition(":")
        name = f"{name}:{attribute}" if attribute else name
    if arguments and not re.match(r"\w+=", arguments):
        raise InputError(f"--reward {text!r}: write NAME:key=value,key=value; quote a value that holds a comma.")
    try:
        values = OmegaConf.create("{" + re.sub(r"(^|,)\s*(\w+)=", r"\1 \2: ", arguments) + "}")
    except YAMLError as error:
        raise InputError(
            f"--reward {text!r}: quote a value that holds a comma or a bracket ({error.problem})."
        ) from error
    return {name: OmegaConf.to_container(values)}


def _comparison_folder(runs: Sequence[str], names: Iterable[str]) -> Path:
    """Where a comparison goes unless told: below runs/evaluate, whatever its runs are called.

    >>> _comparison_folder(["runs/notes/sft", "runs/notes/grpo"], ["sft", "grpo"])
    PosixPath('runs/evaluate/notes/sft-vs-grpo')
    >>> _comparison_folder(["../grpo", ".."], ["grpo", ".."])
    PosixPath('runs/evaluate/grpo-vs-..')
    >>> _comparison_folder([".."], [".."])
    PosixPath('runs/evaluate/_')
    """
    tasks = {Path(run).parent.name for run in runs} - {"", ".."}
    name = "-vs-".join(name.replace("/", "_") for name in names)
    if len(whole := name.encode()) > LONGEST_NAME:
        name = f"{whole[:LONGEST_NAME].decode(errors='ignore')}...{hashlib.sha256(whole).hexdigest()[:8]}"
    return Path("runs", "evaluate", *(tasks if len(tasks) == 1 else ()), "_" if name == ".." else name)


def _evaluate(words: argparse.Namespace) -> int:
    from . import preflight, rewards, train
    from .evaluation.comparison import label
    from .evaluation.metrics import ALWAYS_MEASURED
    from .evaluation.require import Requirement
    from .recipe import Recipe, load, max_new_tokens, short_names
    from .seeds import seeds_of

    required = [Requirement.read(said) for said in words.require]
    runs, overrides = _split([*words.run, *words.overrides])
    source = load(words.data, overrides)
    names = short_names(runs)
    output = words.output or _comparison_folder(runs, names)
    evaluation = {**source.values.get("evaluation", {}), "runs": runs}
    evaluation["max_new_tokens"] = max_new_tokens(source.values)
    values = {"data": source.values["data"], "evaluation": evaluation, "training": {"output_dir": str(output)}}
    recipe = Recipe(Path(words.data), {"method": "evaluate", **values})
    findings = preflight.check(recipe)
    if findings.problems:
        raise InputError(" ".join(findings.problems))
    for text in findings.warnings:
        note(f"Warning: {text}")
    measured = [*(metric.name for metric in rewards.build(recipe.evaluation.metrics)), *ALWAYS_MEASURED]
    processed = [label({"run": name, "postprocessed": True}) for name in preflight.post_processed(recipe)]
    recipes = [label({"run": name, "postprocessed": False, "seeds": of}) for name, of in seeds_of(names).items()]
    shown = [*processed, *recipes, *preflight.shown(recipe)]
    required = [requirement.among(shown, measured) for requirement in required]
    train.run(recipe)
    _show(output)
    result = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    failures = [failure for requirement in required if (failure := requirement.failure(result))]
    for failure in failures:
        note(f"Error: {failure}")
    return 1 if failures else 0


def _report(words: argparse.Namespace) -> int:
    from .evaluation.live import method_of, watch

    watches, runs, seconds = words.watch is not None, words.run, words.watch
    if isinstance(seconds, Path):
        runs, seconds = [seconds, *runs], WATCH_EVERY
    if not runs:
        raise InputError("Which run? Name its folder, as in `lastmile report runs/my_task/grpo`.")
    if watches and not 0 < seconds < math.inf:
        raise InputError(f"--watch {seconds}: the seconds between two looks must be more than 0.")
    for run in runs:
        to_come = watches and (not run.exists() or run.is_dir() and is_empty(run))
        if method_of(run) is None and not to_come:
            raise InputError(f"{run} holds no recipe.yaml, so it is no run to report on: name a run's folder.")
        if not watches and not (run / "evaluation.json").exists():
            raise InputError(
                f"{run} has no evaluation.json to report on, as it has not finished: "
                f"`lastmile report {run} --watch` shows how it goes."
            )
    if watches:
        watch(runs, seconds, _write_report)
    else:
        for run in runs:
            _write_report(run)
    return 0


def _write_report(run: Path) -> None:
    """The page of a run that was evaluated, which is said to stand there, and the tables as Markdown."""
    from .evaluation import acceptance, report, tables
    from .recipe import short_names
    from .run_folder import alarms, history, stored_recipe

    stored = stored_recipe(run)
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    runs = short_names(stored.evaluation.runs) if stored.method == "evaluate" else {run.name: run}
    histories = {name: history(path) for name, path in runs.items()}
    notes = [*alarms(runs), *stored.evaluation.notes]
    write = acceptance.write_page if stored.method == "reward" else report.write_report
    markdown = acceptance.markdown if stored.method == "reward" else tables.summary
    write_whole(run / "evaluation.md", markdown(result))
    _print(str(write(result, histories, run / "report.html", notes)))


def _generate(words: argparse.Namespace) -> int:
    from . import data, models, outputs, run_folder

    if words.temperature < 0 or words.max_new_tokens < 1 or words.prompt == "":
        raise InputError(
            "--temperature must be at least 0, --max_new_tokens at least 1, and --prompt must say something."
        )
    settings = {"max_new_tokens": words.max_new_tokens, "temperature": words.temperature}
    if words.prompt is not None:
        prompts = [words.prompt]
    else:
        from dataclasses import replace

        stored = run_folder.stored_recipe(words.run)
        if stored is None:
            raise InputError(f"{words.run} holds no recipe.yaml to make prompts of --file with: use --prompt.")
        rows = data.read(replace(stored.data, path=words.file), "train", labelled=False)
        tokenizer = models.load_tokenizer(str(words.run))
        prompts = list(data.with_prompts(rows, stored.data, tokenizer, [])["prompt"])
    for text in outputs.generate(words.run, prompts, **settings):
        _print(text.strip() if words.prompt is not None else json.dumps(text.strip(), ensure_ascii=False))
    return 0


def _merge(words: argparse.Namespace) -> int:
    from .merge import merge

    _print(str(merge(words.run, words.destination)))
    return 0


def _push(words: argparse.Namespace) -> int:
    from .hub import push

    options = {name: getattr(words, name) for name in ("private", "merge", "revision", "create_pr")}
    if not (words.run / "recipe.yaml").is_file():
        raise InputError(f"{words.run} is not a run folder: it has no recipe.yaml; name a folder `lastmile run` made.")
    _print(push(words.run, words.repo, **options))
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
