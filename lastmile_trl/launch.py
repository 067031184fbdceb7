"""How a stage is started: ``accelerate launch`` with a shipped or own config."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .errors import InputError, did_you_mean
from .recipe import Recipe, shipped

if TYPE_CHECKING:
    import psutil

SHARDED = ("DEEPSPEED", "FSDP")  # of accelerate's kinds of launch
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MARK = "LASTMILE_STAGE"  # in the environment of all processes of a stage


@dataclass(frozen=True)
class Launch:
    """An accelerate config and a number of processes."""

    config: Path
    processes: int
    cpu: bool
    distributed: str = "NO"  # accelerate's distributed_type

    @classmethod
    def choose(cls, name: str | None, processes: int | None) -> "Launch":
        """The config asked for; by default the one for this machine: cpu, single_gpu or multi_gpu."""
        if name is None:
            gpu = shutil.which("nvidia-smi") or shutil.which("rocm-smi") or sys.platform == "darwin"
            name = "cpu" if not gpu else "multi_gpu" if (processes or 1) > 1 else "single_gpu"
        config = _locate(name)
        values = _read(config)
        if processes is None:
            processes = int(values.get("num_processes") or 1)
        if processes < 1:
            raise InputError(f"--num_processes must be at least 1, not {processes}.")
        return cls(config, processes, bool(values.get("use_cpu")), str(values.get("distributed_type", "NO")))

    @property
    def sharded(self) -> bool:
        """Whether the weights or the optimiser are spread over the processes."""
        return self.distributed in SHARDED

    def check_devices(self) -> None:
        """Refuse a launch that asks this machine for more GPUs than torch sees."""
        if self.cpu:
            return
        import torch

        there = torch.accelerator.device_count()
        asked = self.processes // int(_read(self.config).get("num_machines") or 1)
        if there == 0:
            raise InputError(f"--accelerate {self.config.stem} needs a GPU, and torch sees none: use --accelerate cpu.")
        if asked > there:
            raise InputError(
                f"{asked} processes on this machine need as many GPUs, and torch sees {there}: set --num_processes."
            )

    def alone(self) -> "Launch":
        """The same device in one process, for what is not distributed."""
        return self if self.processes == 1 else Launch.choose("cpu" if self.cpu else "single_gpu", 1)

    def command(self, recipe: Recipe, launcher: str = "accelerate.commands.launch") -> list[str]:
        """The exact command; printed by --dry-run it can be pasted into a shell."""
        # Without --multi_gpu accelerate starts one process on a CPU, and with it, it does not shard.
        several = ["--multi_gpu"] if self.cpu and self.processes > 1 and not self.sharded else []
        return [
            sys.executable, "-m", launcher, "--quiet",
            "--config_file", str(self.config), *several, "--num_processes", str(self.processes),
            "-m", "lastmile_trl", str(recipe.source), *recipe.overrides,
        ]  # fmt: skip

    def shell(self, recipe: Recipe) -> str:
        """The command as one line for a shell."""
        return shlex.join(self.command(recipe))

    def environment(self, debug: bool, force: bool) -> dict[str, str]:
        """What the stage's processes inherit."""
        extra = {"LASTMILE_PROCESSES": str(self.processes), "LASTMILE_FORCE": str(int(force))}
        if self.sharded:
            extra["LASTMILE_SHARDED_BY"] = self.distributed
        usual = {"TOKENIZERS_PARALLELISM": "false"}
        if self.cpu:
            extra["ACCELERATE_USE_CPU"] = "true"
            usual["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.processes))
        if debug:
            extra["LASTMILE_DEBUG"] = "1"
        return {**usual, **os.environ, **extra}


def main() -> None:
    """Accelerate's launcher, which hands a signal to the processes that train and waits until they have saved.

    By itself it would end them 30 seconds later, in which a step may not end.
    """

    def hand_on(number: int, frame: Any) -> None:
        workers = [worker for worker in _workers(os.environ[MARK]) if worker.pid != os.getpid()]
        if not workers:
            sys.exit(128 + number)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # to torchrun, which would put handlers of its own in their place
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch.main()
    except ChildFailedError:  # who failed has said why, and torchrun who
        sys.exit(1)


@contextmanager
def listening(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Hear signals for a while, but those that are switched off, as nohup does."""
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def start(command: list[str], environment: dict[str, str]) -> int:
    """Run a stage; its exit code, or 128 and the number of the signal that ended it.

    The stage has a session of its own. A signal goes to the processes that train, and not to their launcher, which
    would leave them behind, so that they save before they leave.
    """
    import psutil

    heard: list[int] = []
    asked: set[psutil.Process] = set()
    mark = uuid4().hex
    process = subprocess.Popen(command, env={**environment, MARK: mark}, start_new_session=True)

    def forward(number: int, frame: Any) -> None:
        heard.append(number)
        workers = [worker for worker in _workers(mark) if worker.pid != process.pid]
        asked.update(workers)
        for worker in workers or [process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has just left
                worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    with listening(SIGNALS, forward):
        code = process.wait()
        psutil.wait_procs(list(asked))  # whose launcher may have been ended before them
    return 128 + heard[0] if heard and code else code


def _workers(mark: str) -> "Iterator[psutil.Process]":
    """The processes of a stage, wherever they hang by now; one that leaves, or is not ours, is none."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "lastmile_trl" in process.cmdline() and process.environ().get(MARK) == mark:
                yield process


def _locate(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    folder = shipped("accelerate_configs")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    raise InputError(f"--accelerate {name!r} is no file and none of {', '.join(names)}{did_you_mean(name, names)}")


def _read(config: Path) -> dict[str, Any]:
    import yaml

    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise InputError(f"--accelerate {config}: not an accelerate config; `accelerate config` writes one.")
    return values


if __name__ == "__main__":
    main()
