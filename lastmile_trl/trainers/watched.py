"""Any of TRL's trainers, stopped by the first loss or gradient that is no number: nothing is learned after it."""

import math
from typing import Any

import torch

from lastmile_trl.errors import RunError

SHOWN = 2  # rows that are named


class Watched:
    """Mixed into a trainer by `lasting`."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Remember the rows."""
        self._rows_seen = inputs
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args, **kwargs):
        """Look at the loss."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunError(self._said("loss", loss.item()))
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        # In fp16, such steps are part of finding the scale, and left out.
        scaled = self.accelerator.scaler is not None or self.args.fp16
        if norm is not None and not scaled and not math.isfinite(norm):
            raise RunError(self._said("gradient", float(norm)))
        return norm

    def _said(self, what: str, value: float) -> str:
        return (
            f"The {what} is {value} in step {self.state.global_step + 1} of {self.state.max_steps}, so nothing more "
            f"would be learned; lower training.learning_rate or look at the rows: {_texts(self, self._rows_seen)}."
        )


def _texts(trainer: Any, inputs: dict[str, Any]) -> str:
    """The first rows of a batch as texts."""
    ids = inputs["prompt_ids"] if "prompt_ids" in inputs else inputs["input_ids"]
    texts = trainer.processing_class.batch_decode(ids[:SHOWN], skip_special_tokens=True)
    more = f", and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(repr(text[:80]) for text in texts) + more
