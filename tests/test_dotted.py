"""Code of the user's own is named before it runs, once for each stage."""

import sys

import pytest

from lastmile_trl import cli, dotted
from lastmile_trl.rewards import build

CODE = """import sys
sys.stderr.write("it runs\\n")


def reward(completions, **columns):
    return [len(text) for text in completions]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_mine").mkdir()
    (tmp_path / "of_mine" / "own.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("LASTMILE_PROCESSES", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("of_mine", "of_mine.own"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    dotted._announce.cache_clear()
    return tmp_path / "of_mine" / "own.py"


def test_code_of_others_is_named_before_it_runs_and_once(module, capfd):
    assert dotted.place("of_mine.own:reward") == str(module) and "of_mine" not in sys.modules
    for _ in range(2):
        build(["of_mine.own:reward", "rouge", "lastmile_trl.synthetic:FactF1"])
    assert capfd.readouterr().err == f"Reward 'of_mine.own:reward' runs code of {module}.\nit runs\n"


@pytest.mark.parametrize(("name", "value"), [("LASTMILE_PROCESSES", "1"), ("RANK", "1")])
def test_a_stage_does_not_say_again_what_the_command_or_its_first_process_has_said(
    module, monkeypatch, capfd, name, value
):
    monkeypatch.setenv(name, value)
    build(["of_mine.own:reward"])
    assert capfd.readouterr().err == "it runs\n"


def test_a_check_says_it(module, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["check", "quickstart/grpo", 'evaluation.metrics=["of_mine.own:reward"]'])
    assert capfd.readouterr().err.count(f"Reward 'of_mine.own:reward' runs code of {module}.\n") == 1
