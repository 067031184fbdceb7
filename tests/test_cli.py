"""The command line as a person uses it: real processes, in an empty folder."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lastmile_trl import cli
from lastmile_trl.recipe import load, shipped, shipped_names, short_names

from .conftest import make_rows, write_jsonl
from .fakehub import FakeHub, Fault, User

QUICK = {"training": {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no",
                      "gradient_checkpointing": False, "learning_rate": 1e-2},
         "evaluation": {"rows": 4, "max_new_tokens": 8, "sampled": False}}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_model_folder):
    """An empty folder with rows and two stages to run."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    shared = {**QUICK, "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8}}
    sft = {**shared, "method": "sft", "model": {"model_name_or_path": str(tiny_model_folder)}}
    grpo = {
        **shared,
        "method": "grpo",
        "model": {"model_name_or_path": "runs/task/sft"},
        "rewards": ["rouge", "length"],
        "training": {**QUICK["training"], "num_generations": 4, "max_completion_length": 8},
    }
    (tmp_path / "task").mkdir()
    for name, values in {"sft": sft, "grpo": grpo}.items():
        (tmp_path / "task" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def lastmile(*words, check=True, **environment):
    command = [sys.executable, "-m", "lastmile_trl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def stopped_when(said, *words, **environment):
    """The command, sent SIGTERM once it has said this."""
    command = [sys.executable, "-m", "lastmile_trl", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    heard = ""
    for line in process.stderr:
        heard += line
        if said in line:
            process.terminate()
    return subprocess.CompletedProcess(command, process.wait(), stderr=heard)


def call(*words):
    """The same in this process: the exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return left.value.code


def test_from_a_folder_of_recipes_to_results(folder, capsys):
    first = lastmile("run", "task")
    assert "stage 1 of 2: sft -> runs/task/sft" in first.stderr
    assert "stage 2 of 2: grpo -> runs/task/grpo" in first.stderr
    assert "rouge/" in first.stdout and "Report: runs/task/grpo/report.html" in first.stdout
    assert (folder / "runs/task/grpo/model.safetensors").exists()

    assert call("run", "task") == 0
    assert capsys.readouterr().err.count("finished already, skipped") == 2
    assert call("run", "task/sft.yaml", "training.max_steps=3") == 2
    assert "runs/task/sft holds another recipe's run (training.max_steps was 2, is 3)" in capsys.readouterr().err

    assert call("evaluate", "runs/task/sft", "runs/task/grpo", "evaluation.rows=3", "--data", "task/grpo.yaml") == 0
    assert "Report: runs/evaluate/task/sft-vs-grpo/report.html" in capsys.readouterr().out
    result = json.loads((folder / "runs/evaluate/task/sft-vs-grpo/evaluation.json").read_text())
    assert result["rows"] == 3 and result["baseline"] == "sft"
    assert call("evaluate", "runs/task/sft", "--data", "task/grpo.yaml", "--output", "runs/task/grpo") == 2
    assert "runs/task/grpo holds another recipe's run" in capsys.readouterr().err

    page, tables = (folder / "runs/evaluate/task/sft-vs-grpo" / name for name in ("report.html", "evaluation.md"))
    before, markdown = page.read_text(), tables.read_text()
    assert markdown.startswith("No difference is shown between grpo and sft on ") and "\n| grpo | greedy | " in markdown
    page.unlink()
    tables.unlink()
    assert call("report", "runs/evaluate/task/sft-vs-grpo") == 0
    assert capsys.readouterr().out.strip() == "runs/evaluate/task/sft-vs-grpo/report.html"
    assert (page.read_text(), tables.read_text()) == (before, markdown)

    assert call("generate", "runs/task/grpo", "--prompt", "cat =>", "--max_new_tokens", 4) == 0
    write_jsonl(folder / "new.jsonl", [{"source": "cat"}, {"source": "dog"}])
    assert call("generate", "runs/task/grpo", "--file", "new.jsonl", "--max_new_tokens", 4) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.fixture
def seeds(folder, tiny_model_folder):
    """Run folders of two recipes with two seeds each, as if they had been trained."""
    for name, values in {name: load(f"task/{name}.yaml").values for name in ("sft", "grpo")}.items():
        for seed in (0, 1):
            run = folder / f"runs/{name}-{seed}"
            shutil.copytree(tiny_model_folder, run)
            training = values["training"] | {"seed": seed, "output_dir": f"runs/{name}-{seed}"}
            start = {"model_name_or_path": f"runs/sft-{seed}" if name == "grpo" else "tiny"}
            (run / "recipe.yaml").write_text(yaml.safe_dump({**values, "model": start, "training": training}))
    return [f"runs/{name}-{seed}" for name in ("sft", "grpo") for seed in (0, 1)]


def test_recipes_over_their_seeds_are_in_all_outputs(folder, seeds, capsys):
    assert call("evaluate", *seeds, "--data", "task/sft.yaml", "--output", "runs/both") == 0
    text = capsys.readouterr().out
    assert re.search(r"^ *grpo, 2 seeds +0.000 ", text, re.MULTILINE)
    assert "No difference is shown between grpo over 2 seeds and sft over 2 seeds on " in text
    assert "; against post-processed sft over 2 seeds no difference is shown: " in text
    result = json.loads((folder / "runs/both/evaluation.json").read_text())
    assert result["version"] == 2
    assert {of["run"]: of["seeds"] for of in result["over_seeds"]} == {
        "sft": ["sft-0", "sft-1"],
        "grpo": ["grpo-0", "grpo-1"],
    }
    page = (folder / "runs/both/report.html").read_text()
    assert page.count('<span class="under">2 seeds</span>') == 2
    processed = [of["run"] for of in result["results"] if of["postprocessed"]]
    assert processed == ["sft-0", "sft-1"], "every seed of the baseline's recipe"
    required = ["--require", "grpo, 2 seeds:words>=0", "--require", "sft, 2 seeds:words<0"]
    assert call("evaluate", *seeds, "--data", "task/sft.yaml", "--output", "runs/both", *required) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert error.startswith("Error: --require 'sft, 2 seeds:words<0' fails: sft, 2 seeds has words ")

    # an evaluation of version 1, before p values and seeds
    old = {key: value for key, value in result.items() if key != "over_seeds"} | {"version": 1}
    for entry in old["results"]:
        for difference in [
            *(entry["difference"] or {}).values(),
            *(entry["difference_to_postprocessed"] or {}).values(),
        ]:
            if difference:
                del difference["p"], difference["p_adjusted"]
    (folder / "runs/both/evaluation.json").write_text(json.dumps(old))
    assert call("report", "runs/both") == 0
    assert "There is no p, as the evaluation is of version 1" in (folder / "runs/both/report.html").read_text()


def test_a_comparison_of_many_runs_has_a_folder_name_that_a_disk_takes():
    runs = [f"runs/task/a_long_name_é_of_a_run-{seed}" for seed in range(12)]
    one, other = (cli._comparison_folder(some, short_names(some)) for some in (runs, runs[:-1]))
    assert one.parent == other.parent == Path("runs/evaluate/task") and one != other
    assert one.name.startswith("a_long_name_é_of_a_run-0-vs-a_long_name") and len(one.name.encode()) <= 255
    assert one == cli._comparison_folder(runs, short_names(runs))


def test_what_an_evaluation_must_reach(folder, seeds, capsys, monkeypatch):
    evaluate = ["evaluate", *seeds[1:3], "--data", "task/sft.yaml", "--output", "runs/both"]
    assert call(*evaluate, "--require", "words>=0", "--require", "sft-1:rougeL<=1") == 0
    capsys.readouterr()
    assert call(*evaluate, "--require", "rougeL>1", "--require", "words>=0", "--require", "sft-1:words > 1e3") == 1
    said = capsys.readouterr()
    assert "Report: runs/both/report.html" in said.out
    first, second = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert re.fullmatch(
        r"Error: --require 'rougeL>1' fails: grpo-0 has rouge/rougeL [.\d]+ \[[.\d]+, [.\d]+\] over 4 rows\.", first
    )
    assert "'sft-1:words > 1e3' fails: sft-1 has words" in second

    lead = ["evaluation.baselines=[lead]", "--require", "lead:words<0", "--require", "sft-1, post-processed:words>=0"]
    assert call(*evaluate, *lead) == 1
    assert "Error: --require 'lead:words<0' fails: lead has words" in capsys.readouterr().err

    from lastmile_trl import preflight, train

    monkeypatch.setattr(train, "run", None)  # nothing is decoded
    for wrong, message in {"rougel>1": "did you mean 'rouge/rougeL'", "grpo:words>1": "did you mean 'grpo-0'"}.items():
        assert call(*evaluate, "--require", wrong) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(preflight, "check", None)  # nor looked at
    assert call(*evaluate, "--require", "rougeL=1") == 2
    assert "write METRIC>=NUMBER" in capsys.readouterr().err


@pytest.fixture
def grpo(folder, tiny_model_folder):
    """Writes GRPO recipes that start from the tiny model itself."""
    values = yaml.safe_load((folder / "task/grpo.yaml").read_text())

    def write(name, rewards):
        recipe = {**values, "model": {"model_name_or_path": str(tiny_model_folder)}, "rewards": rewards}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))

    return write


def test_a_failing_stage_stops_the_ones_after_it(folder, grpo):
    (folder / "late.py").write_text(
        "def reward(completions, trainer_state=None, **columns):\n"
        "    if trainer_state is not None and trainer_state.global_step == 1:\n"
        "        raise KeyError('oops')\n"
        "    return [0.0] * len(completions)\n"
    )
    grpo("bad", ["late:reward"])
    grpo("after", ["rouge"])
    done = lastmile("run", "bad.yaml", "after.yaml", check=False)
    assert done.returncode == 1
    assert "Error: Reward 'reward' failed on row 0 of the batch" in done.stderr and "Traceback" not in done.stderr
    assert "stage 1 of 2: grpo -> runs/bad failed; the stages after it were not started." in done.stderr
    assert not (folder / "runs/after").exists()


def test_two_cpu_processes_train_on_the_same_prompts(folder, grpo):
    """The reward counts letters of the prompt, so its mean says which prompts were drawn."""
    (folder / "letters.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [len(p) for p in prompts]\n"
    )
    grpo("one", ["letters:letters", "rouge"])
    grpo("two", ["letters:letters", "rouge"])
    lastmile("run", "one.yaml", "training.max_steps=3")
    lastmile("run", "two.yaml", "training.max_steps=3", "training.per_device_train_batch_size=4",
             "--accelerate", "cpu", "--num_processes", 2)  # fmt: skip
    logged = {}
    for name in ("one", "two"):
        lines = (folder / "runs" / name / "history.jsonl").read_text().splitlines()
        logged[name] = [row for row in map(json.loads, lines) if "reward" in row]
        assert len(json.loads((folder / "runs" / name / "evaluation.json").read_text())["examples"]) == 4
        environment = json.loads((folder / "runs" / name / "environment.json").read_text())
        assert environment["processes"] == {"one": 1, "two": 2}[name]
    key = "rewards/letters/mean"
    assert len(logged["one"]) == 3 and len({row[key] for row in logged["one"]}) > 1
    assert [row[key] for row in logged["one"]] == [row[key] for row in logged["two"]]
    means = {name: statistics.mean(row["rewards/rouge/rougeL/mean"] for row in rows) for name, rows in logged.items()}
    assert means["one"] == pytest.approx(means["two"], abs=0.1)


def test_dry_run_prints_the_recipe_and_a_command_that_can_be_pasted(folder, capsys):
    assert (
        call("run", "task/sft.yaml", "--dry-run", "--accelerate", "cpu", "--num_processes", 2, "training.seed=3") == 0
    )
    text = capsys.readouterr().out
    resolved = yaml.safe_load("".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")))
    assert resolved["training"]["seed"] == 3 and resolved["training"]["output_dir"] == "runs/task/sft"
    command = text.splitlines()[-2].removeprefix("# ")
    assert command.endswith("--multi_gpu --num_processes 2 -m lastmile_trl task/sft.yaml training.seed=3")
    assert not (folder / "runs").exists()


def test_recipes_are_listed_and_copied_into_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped_names()
    assert all(len(line.split()) > 4 for line in lines)
    assert call("copy", "samsum", "mine") == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == sorted(
        p.name for p in (shipped("recipes") / "samsum").iterdir()
    )
    assert "output_dir: runs/mine/grpo" in (tmp_path / "mine/grpo.yaml").read_text()
    assert "model_name_or_path: runs/mine/sft" in (tmp_path / "mine/grpo.yaml").read_text()
    assert "lastmile run mine/sft mine/grpo" in (tmp_path / "mine/grpo.yaml").read_text()
    assert "samsum/" not in (tmp_path / "mine/grpo.yaml").read_text().replace("knkarthick/samsum ", "")
    assert load("mine/grpo").run == Path("runs/mine/grpo")
    assert call("copy", "samsum/sft", "one.yaml") == 0
    assert (tmp_path / "one.yaml").read_text() == (shipped("recipes") / "samsum/sft.yaml").read_text()
    assert call("copy", "samsum/sft", "mine") == 2
    assert "mine/sft.yaml exists already" in capsys.readouterr().err
    assert call("copy", "sansum", "x") == 2


def test_check_lists_what_to_mend(folder, capsys):
    assert call("check", "task") == 0
    text = capsys.readouterr().out
    assert text.count("nothing to mend") == 2 and "rouge/rougeL: 1.000 for the references" in text
    assert call("check", "task/grpo.yaml", "data.references=traget", "training.num_generations=3") == 2
    text = capsys.readouterr().out
    assert "  1. " in text and "num_generations=3" in text


def test_the_rewards_and_one_of_them(capsys):
    assert call("rewards") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rouge ") and len(lines) >= 24
    assert call("rewards", "repetition") == 0
    assert "How it is gamed:" in capsys.readouterr().out
    assert call("rewards", "--markdown") == 0
    assert capsys.readouterr().out.startswith("# Rewards\n")
    assert call("rewards", "rogue") == 2
    assert "did you mean 'rouge'?" in capsys.readouterr().err


def test_score_what_tables_hold(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("prediction,references\n007,007\n,5\n2,2.0\n")
    assert call("score", tmp_path / "rows.csv", "--reward", "exact_match:normalise=false", "--json") == 0
    assert [json.loads(line)["exact_match"] for line in capsys.readouterr().out.splitlines()] == [1.0, 0.0, 0.0]
    rows = [{"prediction": None, "references": 3}, {"prediction": 3, "references": ["3", None]}]
    write_jsonl(tmp_path / "rows.jsonl", [{"text": str(row["prediction"] or ""), **row} for row in rows])
    assert call("score", tmp_path / "rows.jsonl", "--reward", "exact_match", "--json") == 0
    assert [json.loads(line)["exact_match"] for line in capsys.readouterr().out.splitlines()] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("format:pattern=[", "quote a value that holds a comma or a bracket"),
        ("rouge:rouge1", "write NAME:key=value,key=value"),
        ("overlong", "Reward 'overlong' needs the argument 'limit': `- overlong: {limit: ...}`."),
    ],
)
def test_a_reward_on_the_command_line(tmp_path, capsys, word, message):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prediction": "a", "references": "a"}])
    assert call("score", file, "--reward", word) == 2
    assert message in capsys.readouterr().err


def test_score_with_what_is_known_of_all_rows(tmp_path, capsys):
    texts = ("a cat sat here", "one dog ran home", "birds flew over it")
    rows = [{"prediction": text, "references": [text]} for text in texts]
    assert call("score", write_jsonl(tmp_path / "rows.jsonl", rows), "--reward", "cider") == 0
    assert "mean 1.0000   always the same  (3 of 3 rows)" in capsys.readouterr().out


def test_score_a_file(tmp_path, capsys):
    rows = [{"prediction": "the cat", "references": ["the cat"]}, {"prediction": "a dog", "references": "the cat"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert call("score", file, "--reward", "rouge", "--reward", "rouge:variant=rouge1,stem=false") == 0
    *rows, first, second = capsys.readouterr().out.splitlines()
    assert rows[0] == "row 0: rouge/rougeL 1.0000  rouge/rouge1 1.0000" and len(rows) == 2
    assert first.split() == ["rouge/rougeL", "mean", "0.5000", "0.00", "█", "█", "1.00", "(2", "of", "2", "rows)"]
    assert second.split()[2] == "0.5000"
    assert call("score", file, "--reward", "length", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"row": 0, "length/excess": 0.0}, {"row": 1, "length/excess": 0.0}]
    assert call("score", tmp_path / "nowhere.jsonl", "--reward", "rouge") == 2
    (tmp_path / "rows.txt").write_text("x")
    assert call("score", tmp_path / "rows.txt", "--reward", "rouge") == 2
    (tmp_path / "broken.jsonl").write_text('{"prediction": "a"\n')
    assert call("score", tmp_path / "broken.jsonl", "--reward", "rouge") == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "nowhere.yaml"], 2, "No recipe 'nowhere.yaml'"),
        (["run", "task/grpo.yaml", "--accelerate", "cpux"], 2, "did you mean 'cpu'?"),
        (["evaluate", "runs/x", "runs/x", "--data", "task/sft.yaml"], 2, "A run is named twice"),
        (["report", "task"], 2, "holds no recipe.yaml"),
        (["generate", "task", "--prompt", "x"], 2, "'task' holds no model"),
        (["generate", "nowhere", "--prompt", "x"], 2, "'nowhere'"),
        (["generate", "task", "--prompt", ""], 2, "--prompt must say something"),
        (["push", "nowhere", "me/x"], 2, "nowhere is not a run folder"),
        (["evaluate", "nowhere", "--data", "task/sft.yaml"], 2, "'nowhere'"),
        (["run", "task", "--num_processes", "0"], 2, "--num_processes must be at least 1"),
        (["chekc"], 2, "invalid choice: 'chekc'"),
        (["check", "task", "learning_rate=1"], 2, "is not an override"),
        (["check", "task", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["recipes", "training.seed=1"], 2, "unrecognized arguments"),
    ],
)
def test_errors_are_one_line_without_a_traceback(folder, capsys, words, code, message):
    assert call(*words) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    if not said.startswith("usage"):
        assert said.count("\n") == 1 and said.startswith("Error: ")


def test_help_is_quick_and_so_is_check(folder):
    def seconds(*words):
        start = time.perf_counter()
        lastmile(*words)
        return time.perf_counter() - start

    # The best of some, as other work on the machine only ever adds; medians: benchmarks/startup.py.
    assert min(seconds("--help") for _ in range(5)) < 0.3
    # What is found of memory comes last, and waits for torch.
    unknown = "model.model_name_or_path=synthetic:tiny"
    assert min(seconds("check", "task/sft.yaml", unknown) for _ in range(4)) < 3


def test_a_run_is_pushed_when_its_recipe_says_so_and_not_lost_when_the_push_fails_or_is_stopped(folder, capsys):
    token = "hf_" + "Alice0" * 6
    push = ["run", "task/sft.yaml", "hub.push=true"]
    with FakeHub(folder / "hub", {token: User("alice")}) as server:
        environment = {**server.environment, "HF_TOKEN": token}
        refused = lastmile(*push, "hub.repo=bob/task", check=False, **environment)
        assert refused.returncode == 2 and "alice may not push to 'bob'" in refused.stderr
        assert not (folder / "runs").exists()

        push += ["hub.repo=alice/task"]
        by_hand = "`lastmile push runs/task/sft alice/task`"
        server.faults["POST", "/repos/create"] = Fault("silent")
        stopped = stopped_when("is being pushed", *push, **environment)
        assert stopped.returncode == 128 + signal.SIGTERM
        assert stopped.stderr.endswith(f"the same command skips it, as it is finished: push it with {by_hand}.\n")
        server.faults.clear()
        not_known = f"Warning: runs/task/sft is not known to have been pushed: push it with {by_hand}.\n"
        assert call(*push) == 0 and not_known in capsys.readouterr().err

        server.faults["POST", "/commit/"] = Fault(403)
        push += ["evaluation.batch_size=4"]  # evaluated and pushed anew
        unlucky = lastmile(*push, **environment)
        assert "Warning: runs/task/sft is finished, but its push failed." in unlucky.stderr
        assert f"push it again with {by_hand}" in unlucky.stderr
        server.faults.clear()
        assert lastmile("push", "runs/task/sft", "alice/task", **environment).stdout.endswith("/alice/task\n")
        assert call(*push) == 0
        skipped = capsys.readouterr().err
        assert "finished already, skipped" in skipped and "push" not in skipped
    repo = server.repos["alice/task"]
    assert repo.private
    assert {"README.md", "recipe.yaml", "evaluation.json", "model.safetensors", "tokenizer.json"} <= repo.files().keys()
    card = repo.files()["README.md"].decode()
    assert "supervised fine-tuning (SFT)" in card and "| sft | greedy |" in card and str(folder) not in card
