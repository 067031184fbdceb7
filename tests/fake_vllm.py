"""What is used of vLLM 0.30.0, with its names and defaults; the words come from transformers."""

from dataclasses import dataclass
from types import SimpleNamespace

# Of `vllm.EngineArgs`, which takes what `LLM` hands on.
ENGINE_ARGS = {"enable_lora": False, "max_lora_rank": 16, "max_loras": 1, "max_model_len": None, "load_format": "auto"}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

started: list[dict] = []  # the arguments of every engine
stopped: list[dict] = []
asked: list[dict] = []  # those of every call of `generate`


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False

    def __post_init__(self):
        assert self.lora_int_id >= 1 and self.lora_path


class LLM:
    room = 10**6  # tokens of a prompt and what follows it

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        **kwargs,
    ):
        assert set(kwargs) <= set(ENGINE_ARGS), kwargs
        self.arguments = {"model": model, "tokenizer": tokenizer, "dtype": dtype, **ENGINE_ARGS, **kwargs}
        assert self.arguments["max_lora_rank"] in RANKS
        started.append(self.arguments)
        core = SimpleNamespace(shutdown=lambda timeout=None: stopped.append(self.arguments))
        self.llm_engine = SimpleNamespace(engine_core=core)
        self.adapters = {}

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        asked.append({"prompts": prompts, "params": sampling_params, "lora": lora_request})
        model = self._model(lora_request)
        return [self._answer(model, *pair) for pair in zip(prompts, sampling_params, strict=True)]

    def _model(self, lora_request):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.arguments["model"])
        if lora_request is None:
            return model
        assert self.arguments["enable_lora"]
        known = self.adapters.setdefault(lora_request.lora_int_id, lora_request.lora_path)
        assert known == lora_request.lora_path, "vLLM would answer with the adapter of that number"
        model = PeftModel.from_pretrained(model, lora_request.lora_path)
        assert model.peft_config["default"].r <= self.arguments["max_lora_rank"]
        return model

    def _answer(self, model, prompt, params):
        """One token after the other, by the noise of our own decoding so that it can be compared."""
        import torch

        from lastmile_trl.evaluation.decoding import _sampling

        assert params.n == 1 and params.ignore_eos and not params.detokenize
        ids, said = list(prompt["prompt_token_ids"]), []
        steps = _sampling([params.seed], params.temperature, params.top_p, model.device)
        reason = "length"
        while len(said) < params.max_tokens and len(ids) + len(said) < self.room:
            with torch.no_grad():
                scores = model(torch.tensor([ids + said])).logits[:, -1].float()
            for step in steps:
                scores = step(torch.tensor([ids + said]), scores)
            said.append(scores.argmax().item())
            if said[-1] in params.stop_token_ids:
                reason = "stop"
                break
        output = SimpleNamespace(index=0, text="", token_ids=said, finish_reason=reason, stop_reason=None)
        return SimpleNamespace(prompt_token_ids=ids, outputs=[output], finished=True)
