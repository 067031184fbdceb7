import os
import shlex
import signal
import sys
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

import lastmile_trl
from lastmile_trl.errors import InputError
from lastmile_trl.launch import Launch, start
from lastmile_trl.recipe import load, shipped


@pytest.fixture
def gpu(monkeypatch):
    """A machine where nvidia-smi is on the path, or not."""

    def there(is_there):
        monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if is_there else None)
        monkeypatch.setattr("sys.platform", "linux")

    return there


@pytest.mark.parametrize(
    ("has_gpu", "processes", "config"),
    [(False, None, "cpu"), (False, 2, "cpu"), (True, None, "single_gpu"), (True, 4, "multi_gpu")],
)
def test_the_config_fits_the_machine(gpu, has_gpu, processes, config):
    gpu(has_gpu)
    launch = Launch.choose(None, processes)
    assert launch.config.stem == config and launch.processes == (processes or 1)
    assert launch.cpu is (not has_gpu)


def test_a_named_config_brings_its_own_number_of_processes(tmp_path):
    assert Launch.choose("zero3", None).processes == 8
    assert Launch.choose("zero3", 2).processes == 2
    assert Launch.choose("zero3", None).distributed == "DEEPSPEED"
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    assert Launch.choose(str(own), None).processes == 3
    own.write_text("- no config\n")
    with pytest.raises(InputError, match="not an accelerate config"):
        Launch.choose(str(own), None)


def test_two_processes_on_a_cpu_need_a_word_more():
    recipe = load("quickstart/sft", ["training.seed=1"])
    one, two = (Launch.choose("cpu", number).command(recipe) for number in (1, 2))
    assert "--multi_gpu" not in one and "--multi_gpu" in two
    assert two[-4:] == ["-m", "lastmile_trl", str(recipe.source), "training.seed=1"]
    recipe = load("quickstart/sft", ["data.prompt={note} a b"])
    assert shlex.split(Launch.choose("cpu", 2).shell(recipe))[-1] == "data.prompt={note} a b"


def test_an_evaluation_runs_alone(gpu):
    assert Launch.choose("cpu", 2).alone() == Launch.choose("cpu", 1)
    assert Launch.choose("zero3", 8).alone() == Launch.choose("single_gpu", 1)


def test_a_stage_knows_how_many_processes_were_asked_for(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = Launch.choose("cpu", 2).environment(debug=False, force=True)
    assert environment["LASTMILE_PROCESSES"] == "2" and environment["LASTMILE_FORCE"] == "1"
    assert environment["ACCELERATE_USE_CPU"] == "true" and "LASTMILE_DEBUG" not in environment
    assert environment["OMP_NUM_THREADS"] == str(max(1, os.cpu_count() // 2))


def test_there_must_be_as_many_gpus_as_processes(monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 8)
    Launch.choose("cpu", 100).check_devices()
    Launch.choose("zero3", 8).check_devices()
    Launch.choose("multi_node", None).check_devices()  # 16, on two machines
    with pytest.raises(InputError, match="9 processes on this machine need as many GPUs, and torch sees 8"):
        Launch.choose("zero3", 9).check_devices()


# --- starting a stage ----------------------------------------------------------------------------------------------

WORKER = """
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
pathlib.Path("ready").touch()
for _ in range(2000):
    time.sleep(0.01)
    if heard:
        break
time.sleep(0.5)  # saving
pathlib.Path("saved").touch()
sys.exit(1)
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, 'lastmile_trl']).returncode)"


@pytest.mark.parametrize("launcher_too", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_process_that_trains_and_is_waited_for(tmp_path, monkeypatch, number, launcher_too):
    """Also where its launcher got the signal as well, and was gone at once."""
    monkeypatch.chdir(tmp_path)
    Path("lastmile_trl").write_text(WORKER)

    def send():
        while not Path("ready").exists():
            time.sleep(0.01)
        if launcher_too:
            [launcher] = [child for child in psutil.Process().children() if LAUNCHER in child.cmdline()]
            launcher.terminate()
        os.kill(os.getpid(), number)

    Thread(target=send).start()
    assert start([sys.executable, "-c", LAUNCHER], dict(os.environ)) == 128 + number
    assert Path("saved").exists()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_nohup_has_switched_off_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stage = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); raise SystemExit(3)"
        assert start([sys.executable, "-c", stage], dict(os.environ)) == 3
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_to_all_processes_at_once_leave_each_the_time_to_save(tmp_path, monkeypatch, capfd):
    """Also where torchrun, which waits for 30 seconds and here for 1, got the signal too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(lastmile_trl.__path__[0]))
    worker = WORKER.replace('Path("', 'Path(__import__("os").environ["RANK"] + "').replace("0.5", "4")
    Path("lastmile_trl").write_text(worker)
    words = ["--quiet", "--config_file", str(shipped("accelerate_configs") / "cpu.yaml"), "--multi_gpu"]

    def send():
        while not (Path("0ready").exists() and Path("1ready").exists()):
            time.sleep(0.01)
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            process.terminate()

    Thread(target=send).start()
    command = [sys.executable, "-m", "lastmile_trl.launch", *words, "--num_processes", "2", "lastmile_trl"]
    assert start(command, {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}) == 128 + signal.SIGTERM
    assert Path("0saved").exists() and Path("1saved").exists()
    assert "Traceback" not in capfd.readouterr().err


def test_without_a_signal_the_code_is_that_of_the_stage():
    assert start([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ)) == 3
