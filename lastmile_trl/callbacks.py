"""What a run shows and keeps while it trains: a line on the screen, its history, looks at the held-out rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback

from .evaluation.alarm import Alarm
from .evaluation.decoding import Output
from .evaluation.metrics import per_row, totals
from .rewards import Reward
from .run_folder import add_history, history, keep_outputs, kept_outputs, training_begins, write_history
from .screen import note


class Progress(ProgressCallback):
    """One line: stage, steps, time left, and the numbers to watch."""

    def __init__(self, title: str):
        super().__init__()
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs):
        """Name the stage."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the numbers of the last logged step."""
        if self.training_bar is not None:
            shown = {key: f"{logs[key]:.3f}" for key in ("reward", "loss", "kl") if logs.get(key) is not None}
            self.training_bar.set_postfix(shown)


class History(TrainerCallback):
    """Every logged step as a line of JSON."""

    def __init__(self, run: Path):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget what was logged after the checkpoint, which is logged again; say how far it goes."""
        if state.is_world_process_zero:
            write_history(self.run, [row for row in history(self.run) if row["step"] <= state.global_step])
            training_begins(self.run, state.global_step, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add a line."""
        if state.is_world_process_zero:
            add_history(self.run, {"step": state.global_step, **logs})


class Completions(TrainerCallback):
    """What GRPO's trainer writes by itself: every logged step's completions with their rewards."""

    def __init__(self, run: Path, trainer: Trainer):
        self.run, self.trainer = run, trainer

    def on_log(self, args, state, control, **kwargs):
        """Write the table of the step."""
        logs = self.trainer._logs
        if state.is_world_process_zero and logs["prompt"]:
            from datasets import Dataset

            columns = {key: list(logs[key]) for key in ("prompt", "completion")}
            columns |= {name: list(values) for name, values in [*logs["rewards"].items(), *logs["extra"].items()]}
            columns["advantage"] = list(logs["advantages"])
            folder = self.run / "completions"
            Dataset.from_dict(columns).to_parquet(folder / f"completions_{state.global_step:05d}.parquet")


class HeldOut(TrainerCallback):
    """Every few steps, outputs for the held-out rows, measured with the evaluation's metrics: `eval_<metric>`.

    In RL the rewards' total, `eval_reward`, stands beside them, and every look is held against one before the first
    step: `eval_alarms` counts the signs that the reward is being gamed, and each is said once.
    """

    def __init__(
        self,
        run: Path,
        trainer: Trainer,
        every: int,
        decode: Callable[[], list[Output]],
        start: str,
        rows: Sequence[dict[str, Any]],
        metrics: Sequence[Reward],
        rewards: Sequence[Reward],
    ):
        self.run, self.trainer, self.every, self.decode, self.rows = run, trainer, every, decode, rows
        self.start = start  # under which the outputs before the first step are kept
        self.metrics, self.rewards = metrics, rewards
        self.alarm: Alarm | None = None
        self.said: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        """Look at what RL starts from; a run that goes on has kept these outputs."""
        if not self.rewards:
            return
        outputs = kept_outputs(self.run, self.start)
        if outputs is None:
            outputs = self.decode()
            if state.is_world_process_zero:
                keep_outputs(self.run, self.start, outputs)
        texts, measured, rewards = self._look(outputs)
        rewarded = [reward.function for reward in self.rewards]
        self.alarm = Alarm(texts, measured, rewards, {m.name for m in self.metrics if m.function in rewarded})
        self.said = {row["sign"] for row in history(self.run) if "sign" in row}
        if not state.global_step:
            self.trainer.callback_handler.on_log(args, state, control, _means(measured, rewards))

    def on_step_end(self, args, state, control, **kwargs):
        """Look again, and have it logged with the step."""
        if state.global_step % self.every:
            return
        texts, measured, rewards = self._look(self.decode())
        values = _means(measured, rewards)
        if self.alarm:
            signs = self.alarm.signs(texts, measured, rewards)
            values["eval_alarms"] = len(signs)
            if state.is_world_process_zero:
                self._say(signs, state.global_step)
        for name, value in values.items():
            self.trainer._metrics["train"][name].append(value)
        control.should_log = True

    def _look(self, outputs: list[Output]) -> tuple[list[str], dict[str, list[float | None]], list[float | None]]:
        measured = per_row(outputs, self.rows, self.metrics)
        return [output.text for output in outputs], measured, totals(outputs, self.rows, self.rewards)

    def _say(self, signs: Mapping[str, str], step: int) -> None:
        for name, sign in signs.items():
            if name not in self.said:
                add_history(self.run, {"step": step, "sign": name, "alarm": sign})
                note(f"Alarm at step {step}: {sign}.")
        self.said |= signs.keys()


def _means(measured: Mapping[str, list[float | None]], rewards: list[float | None]) -> dict[str, float]:
    """The mean of each metric and of the rewards' total over the rows that have one, under the names they log as."""
    columns = {name: [value for value in values if value is not None] for name, values in measured.items()}
    columns["reward"] = [value for value in rewards if value is not None]
    return {f"eval_{name}": sum(values) / len(values) for name, values in columns.items() if values}
