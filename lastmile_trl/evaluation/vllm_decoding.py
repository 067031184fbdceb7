"""Decoding with vLLM: prompts, seeds and end tokens as in `decoding`, tokens from vLLM's engine.

Samples are other ones than those of transformers, as vLLM draws in its own way. Written against vLLM 0.30.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.decoding import Output, end_ids_of, in_batches
from lastmile_trl.models import adapter_config, base_settings, check_safetensors, free_memory, trusts_remote_code

if TYPE_CHECKING:
    from trl import ModelConfig

AT_ONCE = 512  # rows that the engine, which makes its own batches, is given; then their outputs are kept
# Of LoRA, what vLLM refuses, or passes over without a word.
UNKNOWN = (
    "alpha_pattern", "layer_replication", "modules_to_save", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_dora",
)  # fmt: skip
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


@dataclass
class Engine:
    """A base in vLLM, and the adapter that it answers with."""

    llm: Any
    adapter: Any  # a `LoRARequest`, or None
    generation_config: Any

    def decode(
        self,
        tokenizer: Any,
        prompts: list[str | list[dict]],
        *,
        max_new_tokens: int,
        batch_size: int = AT_ONCE,
        temperature: float = 0.0,
        top_p: float = 1.0,
        **settings: Any,
    ) -> list[Output]:
        """What `decoding.decode` does with a model."""
        from vllm import SamplingParams

        end_ids = end_ids_of(self, tokenizer)

        def complete(prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
            sampling = [
                SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed,
                    max_tokens=max_new_tokens,
                    stop_token_ids=end_ids,
                    ignore_eos=True,  # that of the base's tokenizer, which may be another one
                    detokenize=False,
                )
                for seed in seeds
            ]
            asked = [{"prompt_token_ids": ids} for ids in prompts]
            answers = self.llm.generate(asked, sampling, use_tqdm=False, lora_request=self.adapter)
            return [_ids(answer.outputs[0], max_new_tokens) for answer in answers]

        return in_batches(complete, tokenizer, prompts, end_ids, batch_size=max(batch_size, AT_ONCE), **settings)


def _ids(said: Any, max_new_tokens: int) -> list[int]:
    if said.finish_reason == "length" and len(said.token_ids) < max_new_tokens:
        raise RunError(
            f"vLLM had no room for a prompt and {max_new_tokens} tokens after it, in the model's context or in the "
            "GPU's memory: lower data.max_prompt_tokens or evaluation.max_new_tokens."
        )
    return list(said.token_ids)


class Engines:
    """As `models.Loaded`, with vLLM: the one base in memory, on which adapters take turns."""

    def __init__(self):
        self._llm: Any = None
        self._base: dict | None = None
        self._rank = 0  # that there is room for
        self._numbers: dict[tuple, int] = {}  # of adapters: vLLM knows them by it

    def model(self, config: ModelConfig) -> Engine:
        """The model that the configuration names, in memory from now on."""
        path, revision = config.model_name_or_path, config.model_revision
        adapter, rank = suited(path, revision, config.load_in_4bit or config.load_in_8bit)
        settings = base_settings(config, adapter)
        if adapter:
            check_safetensors(path, revision)
        if settings != self._base or rank > self._rank:
            self.release()
            self._llm = _load(config, settings, rank)
            self._base, self._rank = settings, rank
        generation = _generation_config(settings)
        return Engine(self._llm, self._request(path, revision) if adapter else None, generation)

    def _request(self, path: str, revision: str) -> Any:
        from vllm.lora.request import LoRARequest

        number = self._numbers.setdefault((path, revision), len(self._numbers) + 1)
        return LoRARequest(lora_name=f"{path}@{revision}", lora_int_id=number, lora_path=_folder(path, revision))

    def release(self) -> None:
        """End the engine, which is a process of its own."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._base, self._rank = None, None, 0
        free_memory()


def suited(path: str, revision: str = "main", quantised: bool | None = False) -> tuple[dict[str, Any] | None, int]:
    """The configuration of the adapter, and the room it needs; refuses what would be another model in vLLM."""
    if quantised:
        raise InputError(
            f"evaluation.use_vllm decodes bases as they are, and {path!r} is loaded in 4 or 8 bits: set it to false."
        )
    adapter = adapter_config(path, revision)
    if adapter is None:
        return None, 0
    beyond = [key for key in UNKNOWN if adapter.get(key)]
    beyond += ["bias"] if adapter.get("bias", "none") != "none" else []
    if adapter.get("peft_type") != "LORA" or adapter["r"] > RANKS[-1] or beyond:
        has = beyond[0] if beyond else f"peft_type {adapter.get('peft_type')} and r {adapter.get('r')}"
        raise InputError(
            f"evaluation.use_vllm decodes with plain LoRA of rank {RANKS[-1]} at most, and {path!r} has {has}: set it "
            "to false."
        )
    return adapter, next(rank for rank in RANKS if rank >= adapter["r"])


def _load(config: ModelConfig, settings: dict[str, Any], rank: int) -> Any:
    from vllm import LLM

    room = {"enable_lora": True, "max_lora_rank": rank} if rank else {}
    check_safetensors(settings["model_name_or_path"], settings["model_revision"])
    return LLM(
        settings["model_name_or_path"],
        revision=settings["model_revision"],
        tokenizer=config.model_name_or_path,
        tokenizer_revision=config.model_revision,
        dtype=config.dtype or "auto",
        trust_remote_code=trusts_remote_code(),
        load_format="safetensors",
        max_model_len=-1,  # as long as the memory allows
        **room,
    )


def _generation_config(settings: dict[str, Any]) -> Any:
    """What transformers would find beside the model: there may be end tokens in it."""
    from transformers import AutoConfig, GenerationConfig

    path, revision = settings["model_name_or_path"], settings["model_revision"]
    try:
        return GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # there is none
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusts_remote_code())
        return GenerationConfig.from_model_config(config)


def _folder(path: str, revision: str) -> str:
    if Path(path).expanduser().is_dir():
        return str(Path(path).expanduser().resolve())
    from huggingface_hub import snapshot_download

    return snapshot_download(path, revision=revision)
