"""What any of TRL's trainers needs to be stopped at any moment and to go on as if it never was.

A checkpoint is written beside and moved into its place whole, holds what was counted since the last log, and falls on
a boundary of generation, as completions that were generated and not yet trained on are not saved.
"""

import json
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from lastmile_trl import checkpoints
from lastmile_trl.launch import listening
from lastmile_trl.trainers.attributes import replaced
from lastmile_trl.trainers.watched import Watched

TOKENS = "_total_train_tokens"  # counted by TRL's trainers other than those of RL
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Lasting:
    """Mixed into a trainer by `lasting`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._output_dir: str | None = None  # while a checkpoint is written: not yet where it belongs
        self.rows: str | None = None  # names the training rows by their content
        self.left: int | None = None  # the signal that ended the training early
        self._saves = _Saves(self)
        self.add_callback(self._saves)

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.args.output_dir)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, and save before leaving where a signal asks for that."""
        with listening(SIGNALS, self._saves.heard):
            return super().train(*args, **kwargs)

    @property
    def between_generations(self) -> bool:
        """Whether all that was generated has been trained on."""
        if not hasattr(self, "_buffered_inputs"):
            return True
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    # --- writing ---------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial):
        return self._output_dir or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        writing, best = self.run / checkpoints.WRITING, self.state.best_model_checkpoint
        name = f"checkpoint-{self.state.global_step}"
        with replaced(self, _output_dir=str(writing)), checkpoints.on_full_disk(self.run, writing / name):
            super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint not in (None, best):
            self.state.best_model_checkpoint = str(self.run / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(writing / name / "trainer_state.json"))
            accelerator = self.accelerator
            checkpoints.seal(writing / name, accelerator.num_processes, accelerator.distributed_type.value, self.rows)
            checkpoints.put_in_place(writing / name, self.run)
            writing.rmdir()
            rotate_checkpoints(
                output_dir=str(self.run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,  # a half-deleted one would count as new
            )
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        counted = {"loss": self._tr_loss.item(), "total": self._total_loss_scalar, "at": self._globalstep_last_logged}
        counted |= {"metrics": self._metrics["train"], "tokens": getattr(self, TOKENS, None)}
        self._counted_file(output_dir).write_text(json.dumps(counted), encoding="utf-8")

    # --- going on --------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        return _ByEpoch(sampler) if isinstance(sampler, RepeatSampler) and sampler.shuffle else sampler

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        found = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs)
        # All steps are done, and the trainer would still take one before it looked.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else found

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.model if model is None else model
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in model.named_parameters():
            if name in dtypes:  # PEFT loads what TRL had made bfloat16 as float32
                parameter.data = parameter.data.to(dtypes[name])

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        counted = json.loads(self._counted_file(checkpoint).read_text(encoding="utf-8"))
        self._tr_loss = torch.tensor(counted["loss"], device=self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = counted["total"], counted["at"]
        self._metrics["train"].update(counted["metrics"])
        if counted["tokens"] is not None:
            setattr(self, TOKENS, counted["tokens"])

    def _counted_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"counted_{self.args.process_index}.json")


class _ByEpoch(Sampler):
    """TRL's sampler draws an epoch's order from where the last one left off, and a run that goes on has no last one."""

    def __init__(self, sampler: RepeatSampler):
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        self.sampler.generator.manual_seed(self.sampler.seed + epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _Saves(TrainerCallback):
    """Checkpoints fall on boundaries of generation; a signal asks for one, and for the end."""

    def __init__(self, trainer: Lasting):
        self.trainer = trainer
        self.due = False
        self.signal: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        """Save now or at the next boundary; all processes leave at the same one."""
        self._save_on_boundary(control)
        if self.trainer.between_generations and self._anyone_heard():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Save at the end of an epoch if that is a boundary, else at the next one."""
        self._save_on_boundary(control)

    def on_train_end(self, args, state, control, **kwargs):
        """All processes know whether to leave."""
        self._anyone_heard()

    def _save_on_boundary(self, control: TrainerControl) -> None:
        self.due |= control.should_save
        control.should_save = self.due and self.trainer.between_generations
        self.due &= not control.should_save

    def _anyone_heard(self) -> bool:
        """Whether a signal reached any process; all of them ask at the same time."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1 and self.trainer.left is None:
            if self.signal is not None:
                accelerator.set_trigger()
            if accelerator.check_trigger() and self.signal is None:
                self.signal = signal.SIGTERM
        self.trainer.left = self.signal
        return self.signal is not None

    def heard(self, number: int, frame: Any) -> None:
        """A signal: save and leave; Ctrl-C a second time: leave at once."""
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None and self.trainer.accelerator.is_main_process:
            # Not by `print`, which may be what the signal interrupted.
            os.write(2, b"\nStopping: the run will be saved first; Ctrl-C again stops at once.\n")
        self.signal = number


@cache
def lasting(trainer: type[Trainer]) -> type[Trainer]:
    """The trainer's class with all of this, and watched."""
    return type(trainer.__name__, (Lasting, Watched, trainer), {})
