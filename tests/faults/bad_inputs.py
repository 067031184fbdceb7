# ruff: noqa: E501, one case a line
"""What is wrong, and what is said of it: the table that the tests try and that docs/errors.md shows.

Every case is a sound recipe, `recipe.yaml`, with rows and a model beside it, of which one thing is changed. What is
said may hold `...`, which stands for anything.
"""

from dataclasses import dataclass, field
from typing import Any

SOUND = {
    "method": "grpo",
    "model": {"model_name_or_path": "model"},
    "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8},
    "rewards": ["rouge"],
    "training": {"output_dir": "run"},
}
RUN = ("run", "recipe.yaml")


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, and the sentence that says so."""

    wrong: str
    says: str
    change: Any = field(default_factory=dict)  # sections to merge into the recipe, or the whole text of its file
    files: dict[str, Any] = field(default_factory=dict)  # name -> text, bytes, rows, or None for an empty folder
    words: tuple[str, ...] = RUN
    machine: dict[str, Any] = field(default_factory=dict)  # what the machine is like: see the fixture `machine`


def said(*words: str, **more: Any) -> dict[str, Any]:
    """A case of other words on the command line."""
    return {"words": words, **more}


def rows(count: int = 32, **columns: Any) -> list[dict]:
    """Sound rows, but for these columns."""
    return [{"source": f"the cat number {n}", "target": f"cat {n}", **columns} for n in range(count)]


def reward(code: str) -> dict[str, Any]:
    """A reward of one's own that returns this."""
    code = f"def reward(completions, **columns):\n    return {code}\n"
    return {"change": {"rewards": ["mine:reward"]}, "files": {"mine.py": code}}


def model(tokenizer: dict | None = None, **config: Any) -> dict[str, Any]:
    """Other settings of the model, or of its tokenizer."""
    return {"machine": {"config": config, "tokenizer": tokenizer or {}}}


def pairs(**section: Any) -> dict[str, Any]:
    """A reward model with this section `preferences`."""
    return {"change": {"method": "reward", "rewards": [], "preferences": {"negatives": {"truncated": 1}, **section}}}


def best(every: int | None, **section: Any) -> dict[str, Any]:
    """A reward model with these keys in its section `training`, evaluated after so many steps."""
    case = pairs()
    return {"change": {**case["change"], "training": section, "evaluation": {"every": every}}}


def guided(**section: Any) -> dict[str, Any]:
    """A stage of PPO with this section `guidance`."""
    return {"change": {"method": "ppo", "guidance": {"mode": "ppo++", "guide": "base", **section}}}


def training(**section: Any) -> dict[str, Any]:
    """A recipe with these keys in its section `training`."""
    return {"change": {"training": section}}


def evaluation(**section: Any) -> dict[str, Any]:
    """A recipe with this section `evaluation`."""
    return {"change": {"evaluation": section}}


def data(**section: Any) -> dict[str, Any]:
    """A recipe with these keys in its section `data`."""
    return {"change": {"data": section}}


def hub(**section: Any) -> dict[str, Any]:
    """A recipe with this section `hub`."""
    return {"change": {"hub": section}}


def _many_anchors() -> str:
    """Ten times ten times ten ..., a few lines that stand for 10**9 words."""
    lines = [f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * 10)}]" for level in range(9)]
    return "\n".join(["a0: &a0 lol", *lines])


TABLE: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "The recipe's file": [
        ("a recipe that does not exist", said("run", "recipes/samsun/grpo"), "No recipe 'recipes/samsun/grpo': not a file or folder here, and not a shipped one (`lastmile recipes` lists those), did you mean 'samsum/grpo'?"),
        ("an empty file", {"change": ""}, "recipe.yaml holds no recipe: expected sections such as `method:` and `data:`."),
        ("a list instead of sections", {"change": "- method: grpo\n"}, "recipe.yaml holds no recipe: ..."),
        ("one word", {"change": "grpo\n"}, "recipe.yaml has no `method:`; methods are sft, grpo, rloo, ppo, pairs, reward, dpo, evaluate."),
        ("a bracket that is not closed", {"change": "method: [grpo\n"}, "recipe.yaml, line 2 is not valid YAML: ..."),
        ("a tab at the beginning of a line", {"change": "method: grpo\ndata:\n\tpath: rows.jsonl\n"}, "recipe.yaml, line 3 is not valid YAML: found character that cannot start any token."),
        ("a key twice", {"change": "method: grpo\nmethod: sft\n"}, "recipe.yaml, line 2 is not valid YAML: found duplicate key method..."),
        ("a key twice in a section", {"change": "method: grpo\ntraining: {seed: 1, seed: 2}\n"}, "recipe.yaml, line 2 is not valid YAML: found duplicate key seed..."),
        ("two documents", {"change": "method: grpo\n---\nmethod: sft\n"}, "recipe.yaml, line 2 is not valid YAML: ..."),
        ("a Python object", {"change": "method: !!python/object/apply:os.system ['touch planted']\n"}, "recipe.yaml, line 1 is not valid YAML: could not determine a constructor for the tag ..."),
        ("anchors within anchors, which would fill the memory", {"change": _many_anchors()}, "recipe.yaml, line 4: more than 20 aliases such as *a0: write some out."),
        ("a text that is called a number", {"change": "method: grpo\ntraining: {seed: !!float often}\n"}, "recipe.yaml is not valid YAML: could not convert string to float: 'often'."),
        ("an anchor within itself", {"change": "method: grpo\ndata: &all {path: [*all]}\n"}, "recipe.yaml, line 2 is not valid YAML: YAML recursive aliases are not supported."),
        ("brackets in brackets in brackets", {"change": "method: " + "[" * 5000 + "]" * 5000}, "recipe.yaml is nested too deeply: a section holds `key: value` lines."),
        ("a binary file", {"files": {"recipe.yaml": b"\x80\x02}q\x00.\xff\xfe"}}, "recipe.yaml is no text in UTF-8: save it as that, or name another file."),
        ("a file in another encoding than UTF-8", {"files": {"recipe.yaml": "method: grpo # größer".encode("latin-1")}}, "recipe.yaml is no text in UTF-8: save it as that, or name another file."),
        ("a control character", {"change": "method: gr\x00po\n"}, "recipe.yaml is not valid YAML: control characters are not allowed."),
        ("a folder without recipes", said("run", "empty", files={"empty": None}), "empty holds no recipe: no .yaml file in the folder."),
        ("an environment variable", training(run_name="${oc.env:HOME}"), "recipe.yaml: ${oc.env:HOME} is not allowed, only another key as in ${training.seed}."),
        ("a key that refers to nothing", training(run_name="${training.sed}"), "recipe.yaml: ...training.sed..."),
        ("two recipes for one run folder", said("run", "recipe.yaml", "other.yaml", files={"other.yaml": SOUND}), "other.yaml and recipe.yaml both write to run: set another training.output_dir in one of them."),
    ],
    "Sections and keys": [
        ("no method", {"change": {"method": None}}, "recipe.yaml has no `method:`; methods are sft, grpo, ..."),
        ("a method that is a list", {"change": {"method": ["grpo"]}}, "recipe.yaml: method ['grpo'] does not exist..."),
        ("a zero byte", data(references="tar\0get"), "recipe.yaml: 'tar\\x00get' holds a zero byte or half a character, which no text may: drop it."),
        ("an unknown method", {"change": {"method": "grop"}}, "recipe.yaml: method 'grop' does not exist: did you mean 'grpo'? ..."),
        ("an unknown section", {"change": {"rewrads": []}}, "recipe.yaml: unknown section 'rewrads', did you mean 'rewards'?"),
        ("`env:`, which TRL's own files have", {"change": {"env": {"LD_PRELOAD": "x.so"}}}, "recipe.yaml: unknown section 'env'..."),
        ("an unknown key", training(lerning_rate=1e-5), "recipe.yaml: unknown key training.lerning_rate, did you mean 'learning_rate'?"),
        ("a key in the wrong section", training(max_prompt_tokens=5), "recipe.yaml: unknown key training.max_prompt_tokens: it belongs in section `data`."),
        ("a key that TRL had once", training(max_prompt_length=5), "recipe.yaml: training.max_prompt_length is not used here: prompts are shortened by data.max_prompt_tokens..."),
        ("a text for a number", training(learning_rate="fast"), "recipe.yaml: training.learning_rate must be float, not 'fast'."),
        ("a fraction for a whole number", training(num_generations=4.5), "recipe.yaml: training.num_generations must be int or None, not 4.5."),
        ("nothing for a number", training(learning_rate=None), "recipe.yaml: training.learning_rate must be float, not None."),
        ("a list for a text", data(path=["rows.jsonl"]), "recipe.yaml: data.path must be str, not ['rows.jsonl']."),
        ("a list for yes or no", training(use_cpu=[1]), "recipe.yaml: training.use_cpu must be bool, not [1]."),
        ("a text for a section", {"change": {"data": "rows.jsonl"}}, "recipe.yaml: section `data` must hold `key: value` lines, not 'rows.jsonl'."),
        ("rewards that are no list", {"change": {"rewards": {"rouge": {}}}}, "recipe.yaml: section `rewards` must be a list: `- rouge: {weight: 1.0}`."),
        ("no data", {"change": "method: grpo\n"}, "recipe.yaml: data.path is missing: a hub id, a file or folder, or synthetic:<name>."),
        ("no model", {"change": {"model": {"model_name_or_path": None}}}, "recipe.yaml: model.model_name_or_path is missing: ..."),
        ("an override that is none", said("run", "recipe.yaml", "learning_rate=1"), "'learning_rate=1' is not an override: write section.key=value, as in training.learning_rate=2e-5."),
        ("an override of an unknown key", said("run", "recipe.yaml", "training.lr=1"), "recipe.yaml: unknown key training.lr..."),
        ("an override that is no YAML", said("run", "recipe.yaml", "training.report_to=[a"), "The override training.report_to=[a has no valid YAML value: ..."),
        ("an override of what has no keys", said("run", "recipe.yaml", "rewards.0.rouge.x.y=1", **{"change": {"rewards": [{"rouge": [1]}]}}), "'rewards.0.rouge.x.y=1' overrides nothing that the recipe has (...)."),
        ("an override of a reward that is not there", said("run", "recipe.yaml", "rewards.bleu.weight=1"), "The recipe has no reward 'bleu' to override."),
        ("a token in a recipe", training(hub_token="hf_secret"), "recipe.yaml: training.hub_token is not used here: log in with `hf auth login` or set HF_TOKEN: a token in a recipe ends up in files."),
    ],
    "Rows": [
        ("a file that does not exist", data(path="row.jsonl"), "data.path 'row.jsonl' does not exist: check the path, relative to ..."),
        ("a data set that cannot be reached", data(path="some/dataset"), "data.path 'some/dataset' is not a file here, not in the cache, and the Hub cannot be reached (offline?): check the path or the connection."),
        ("a file of another kind", {**data(path="rows.txt"), "files": {"rows.txt": "a\n"}}, "data.path 'rows.txt' is not a file we read: use .json, .jsonl, .csv, .parquet or a hub id."),
        ("an empty file of rows", {"files": {"rows.jsonl": ""}}, "data.path 'rows.jsonl' ..."),
        ("a file of rows that is damaged", {"files": {"rows.jsonl": '{"source": "a", "target"\n'}}, "data.path 'rows.jsonl' cannot be read: JSON parse error: ..."),
        ("a split that does not exist", data(split="training"), "data.path 'rows.jsonl' is one file and has no split 'training': use data.held_out, or a folder with train and validation files."),
        ("held-out rows that are the training rows", data(eval_split="train"), "data.eval_split and data.split are both 'train': held-out rows must be other rows."),
        ("fewer rows than are held out", {"files": {"rows.jsonl": rows(8)}}, "data.path 'rows.jsonl' has 8 rows, too few to set data.held_out=8 aside: lower it or name data.eval_split."),
        ("fewer rows than a step takes", training(gradient_accumulation_steps=32), "'rows.jsonl' has 24 rows to train on, but one step takes 32 prompts: lower training.per_device_train_batch_size or training.gradient_accumulation_steps."),
        ("a column that is missing in the prompt", data(prompt="{sorce} =>"), "data.prompt: 'rows.jsonl' has no column 'sorce', only source, target, did you mean 'source'?"),
        ("a column that is missing for references", data(references="traget"), "data.references: 'rows.jsonl' has no column 'traget', only source, target, did you mean 'target'?"),
        ("a template that is none", data(prompt="{source =>"), "data.prompt is not a template: ...; write {{ and }} for braces."),
        ("empty references", {"files": {"rows.jsonl": rows(target="")}}, "train: 24 of 24 rows have an empty prompt (0) or an empty reference (24), the first is row 0: mend data.path 'rows.jsonl'."),
        ("references of None", {"files": {"rows.jsonl": rows(target=None)}}, "train: 24 of 24 rows have an empty prompt (0) or an empty reference (24), the first is row 0: ..."),
        ("empty prompts", {"files": {"rows.jsonl": rows(source=" ")}}, "train: 24 of 24 rows have an empty prompt (24) or an empty reference (0), the first is row 0: ..."),
        ("one empty reference, with data.strict", {**data(strict=True), "files": {"rows.jsonl": [*rows(31), {"source": "a", "target": ""}]}}, "... of ... rows have an empty prompt (0) or an empty reference (1), the first is row ...: mend data.path 'rows.jsonl'."),
        ("every prompt also among the held-out ones", {"files": {"rows.jsonl": rows(source="a cat")}}, "Every prompt of 'rows.jsonl' is among the held-out ones: use data.group_by."),
        ("a prompt of a column that is called like an argument of TRL", {**data(prompt="{completions} =>"), "files": {"rows.jsonl": [{**row, "completions": row["source"]} for row in rows()]}}, "The template names the column 'completions', which means something else to trainers and rewards: rename it in the data."),
        ("prompts that the model has no room for", {**data(max_prompt_tokens=600), "files": {"rows.jsonl": [{**row, "source": "a cat " * 300 + str(n)} for n, row in enumerate(rows())]}}, "'model' reads 512 tokens, and a prompt has 600, its answer up to 256: lower data.max_prompt_tokens to 256, or training.max_completion_length or evaluation.max_new_tokens."),
        ("neither prompt nor messages", data(prompt=None), "recipe.yaml: give either data.prompt (plain text) or data.messages (chat)."),
        ("messages that are none", data(prompt=None, messages=["{source}"]), "recipe.yaml: data.messages holds '{source}'; write {role: user, content: ...}."),
    ],
    "Models": [
        ("a folder that does not exist", {"change": {"model": {"model_name_or_path": "./nowhere"}}}, "'./nowhere' is not a folder here: check the path, or run its stage first."),
        ("a model that cannot be reached", {"change": {"model": {"model_name_or_path": "some/model"}}}, "'some/model' is not a folder here, not in the cache, and the Hub cannot be reached (offline?): check the name or the connection."),
        ("a name that is none", {"change": {"model": {"model_name_or_path": "my model!"}}}, "'my model!' is neither a folder here nor a hub id."),
        ("a folder without a model", {"change": {"model": {"model_name_or_path": "empty"}}, "files": {"empty": None}}, "'empty' holds no model: no config.json and no adapter_config.json; has its stage finished?"),
        ("a config.json that is damaged", {"files": {"model/config.json": "{"}}, "model/config.json is damaged (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)): fetch or save the model again."),
        ("a sequence-to-sequence model", model(model_type="t5", is_encoder_decoder=True), "'model' is a sequence-to-sequence model (t5), which TRL's trainers cannot train: use a decoder-only model such as Qwen, Llama or GPT-2."),
        ("a reward model", model(architectures=["LlamaForSequenceClassification"], id2label={"0": "good"}), "'model' is a reward model, which scores and does not write: name a language model."),
        ("a tokenizer without an end token", model({"eos_token": None}), "The tokenizer of 'model' has no end-of-text token, so no model could learn to stop."),
        ("messages for a model without a chat template", {**model({"chat_template": None}), **data(prompt=None, messages=[{"role": "user", "content": "{source}"}])}, "data.messages needs a chat template, which the tokenizer of 'model' has not: use data.prompt."),
        ("more tokens than the model knows", model(vocab_size=300), "The tokenizer of 'model' has tokens up to number 310, but the model knows 300, from 0 on: use the tokenizer that was saved with the model."),
        ("LoRA on modules that the model does not have", {"change": {"model": {"use_peft": True, "lora_target_modules": ["c_attn"]}}}, "model.lora_target_modules: a module of 'model' called 'c_attn' does not exist. Valid: down_proj, ..., q_proj, ..."),
        ("LoRA on modules of which the model has a part", {"change": {"model": {"use_peft": True, "lora_target_modules": ["q_proj", "v_prj"]}}}, "model.lora_target_modules: a module of 'model' called 'v_prj' does not exist: did you mean 'v_proj'? Valid: ..."),
        ("4 bits without LoRA", {"change": {"model": {"load_in_4bit": True}}}, "A quantised model cannot be trained itself: set model.use_peft: true for LoRA."),
        ("weights in a pickle", {"files": {"pickled/config.json": '{"model_type": "llama"}', "pickled/pytorch_model.bin": b""}, "change": {"model": {"model_name_or_path": "pickled"}}}, "'pickled' holds no model.safetensors. Weights in other formats (.bin, .pt) may run code when they load, so they are refused: load them where that does no harm, and write them anew with `save_pretrained`."),
        ("a model that brings its own code", model(model_type="homemade", auto_map={"AutoConfig": "code.Config"}), "'model' is made by code of its own, which runs only if you say so: read its .py files, then add --trust-remote-code to the command."),
        ("a recipe that lets such code run", {"change": {"model": {"trust_remote_code": True}}}, "recipe.yaml: model.trust_remote_code is not used here: only the flag --trust-remote-code of the command lets code of a model repository run."),
        ("an adapter on an adapter", {"change": {"model": {"model_name_or_path": "second", "use_peft": True}}, "files": {"first/adapter_config.json": '{"base_model_name_or_path": "model"}', "second/adapter_config.json": '{"base_model_name_or_path": "first"}'}}, "'second' is an adapter on 'first', which is no plain model: make it one with `lastmile merge first DEST`, and train an adapter on that."),
        ("4 bits and 8 bits", {"change": {"model": {"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}}}, "model.load_in_4bit and model.load_in_8bit exclude each other: keep one."),
        ("LoRA of rank 0", {"change": {"model": {"use_peft": True, "lora_r": 0}}}, "recipe.yaml: model.lora_r must be at least 1, not 0."),
        ("an unknown dtype", {"change": {"model": {"dtype": "bf16"}}}, "recipe.yaml: model.dtype must be one of auto, bfloat16, float16, float32, not 'bf16'."),
        ("an adapter without LoRA", {"change": {"model": {"model_name_or_path": "adapter"}}, "files": {"adapter/adapter_config.json": '{"base_model_name_or_path": "model", "r": 8}'}}, "'adapter' is a LoRA adapter: set model.use_peft: true to go on training it, or make it a plain model with `lastmile merge adapter DEST`."),
    ],
    "Rewards": [
        ("no rewards", {"change": {"rewards": []}}, "recipe.yaml: `method: grpo` needs rewards, for example `- rouge: {weight: 1.0}`."),
        ("an unknown reward", {"change": {"rewards": ["roge"]}}, "Reward 'roge' does not exist: did you mean 'rouge'? Valid: ..."),
        ("an unknown argument", {"change": {"rewards": [{"rouge": {"varaint": "rougeL"}}]}}, "Reward 'rouge': argument 'varaint' does not exist: did you mean 'variant'? Valid: ..."),
        ("a weight that is no number", {"change": {"rewards": [{"rouge": {"weight": "much"}}]}}, "Reward 'rouge': weight must be a number, not 'much'."),
        ("a weight beyond what a trainer can hold", {"change": {"rewards": [{"rouge": {"weight": 1e300}}]}}, "Reward 'rouge': weight must be a number, not 1e+300."),
        ("two rewards of one name", {"change": {"rewards": ["rouge", "rouge"]}}, "Two rewards are called 'rouge/rougeL': give one of them `name:`."),
        ("a reward that is a number", {"change": {"rewards": [3]}}, "A reward is a name, or a name with arguments, not 3."),
        ("a reward whose name holds two", {"change": {"rewards": [{"rouge": None, "length": None}]}}, "A reward has one name, and this one has 2 (length, rouge): start each reward with `- ` ..."),
        ("a reward of a module that does not exist", {"change": {"rewards": ["nowhere:reward"]}}, "Reward 'nowhere:reward': importing 'nowhere' failed with ModuleNotFoundError: ...; is it installed, or its folder on PYTHONPATH?"),
        ("a reward of a module that ends the program", {"change": {"rewards": ["mine:reward"]}, "files": {"mine.py": "raise SystemExit(0)\n"}}, "Reward 'mine:reward': importing 'mine' failed with SystemExit: ..."),
        ("a reward that its module does not have", {"change": {"rewards": ["mine:rewrad"]}, "files": {"mine.py": "def reward(completions, **columns): ...\n"}}, "Reward 'mine:rewrad': module 'mine' has no 'rewrad': did you mean 'reward'?"),
        ("a reward that needs a column which is not there", {"change": {"rewards": ["mine:reward"]}, "files": {"mine.py": "def reward(completions, grade, **columns): ...\n"}}, "Reward 'reward' needs a column 'grade', which 'rows.jsonl' has not; columns are ..."),
        ("a reward that returns one number", reward("1.0"), "Reward 'reward' returned 1.0; it must return a list with one number per completion."),
        ("a reward that returns nothing", reward("None"), "Reward 'reward' returned None; it must return a list with one number per completion."),
        ("a reward that returns too few numbers", reward("[1.0]"), "Reward 'reward' returned 1 values for ... completions."),
        ("a reward that returns texts", reward("['good'] * len(completions)"), "Reward 'reward' returned 'good' on row 0 ...; it must be a finite number, or None for a row that cannot be scored."),
        ("a reward that returns NaN", reward("[float('nan')] * len(completions)"), "Reward 'reward' returned nan on row 0 ...; it must be a finite number, ..."),
        ("a reward that returns infinity", reward("[float('inf')] * len(completions)"), "Reward 'reward' returned inf on row 0 ...; it must be a finite number, ..."),
        ("a reward that fails", reward("[1 / 0 for _ in completions]"), "Reward 'reward' failed on row 0 ...: ZeroDivisionError: division by zero"),
        ("a reward that takes no columns", {"change": {"rewards": ["mine:reward"]}, "files": {"mine.py": "def reward(completions): return [1.0] * len(completions)\n"}}, "Reward 'reward' failed ...: TypeError: reward() got an unexpected keyword argument ..."),
        ("the model of a reward is not there", {"change": {"rewards": [{"model": {"model": "empty"}}]}, "files": {"empty": None}}, "Reward 'model': 'empty' holds no model: no config.json..."),
    ],
    "Training": [
        ("too few completions of a prompt", training(num_generations=1), "training.num_generations is 1, but grpo compares at least 2 completions."),
        ("completions that do not fill groups", training(num_generations=3), "8 completions are generated at once (per_device_train_batch_size x 1 processes x gradient_accumulation_steps), which is no multiple of training.num_generations=3: change one."),
        ("no completions", training(num_generations=0), "recipe.yaml: training.num_generations must be at least 1, not 0."),
        ("an unknown loss", training(loss_type="grppo"), "recipe.yaml: training.loss_type must be one of ..., not 'grppo'."),
        ("an unknown schedule of the learning rate", training(lr_scheduler_type="linaer"), "recipe.yaml: training.lr_scheduler_type must be one of linear, cosine, ..., not 'linaer'."),
        ("an unknown optimiser", training(optim="adam"), "recipe.yaml: training.optim must be one of ..., not 'adam'."),
        ("an unknown time to save", training(save_strategy="sometimes"), "recipe.yaml: training.save_strategy must be one of no, steps, epoch, best, not 'sometimes'."),
        ("the best checkpoint, of a trainer that does not evaluate", training(load_best_model_at_end=True), "recipe.yaml: training.load_best_model_at_end: true goes by a loss on held-out pairs, which only `method: reward` has: leave it out."),
        ("only the best checkpoint, of such a trainer", training(save_strategy="best"), "recipe.yaml: training.save_strategy: best goes by a loss on held-out pairs, which only `method: reward` has: leave it out."),
        ("the best reward model, which is not evaluated", best(None, load_best_model_at_end=True), "recipe.yaml: training.load_best_model_at_end: true goes by the loss on held-out pairs: set evaluation.every, or leave it out."),
        ("the best reward model by nothing", best(2, save_strategy="best"), "recipe.yaml: training.save_strategy: best needs training.metric_for_best_model, such as eval_loss."),
        ("the best reward model, which may not be saved", best(3, load_best_model_at_end=True), "recipe.yaml: training.load_best_model_at_end: true needs a loss on held-out pairs for every checkpoint: set save_strategy: steps and save_steps to a multiple of evaluation.every, 3."),
        ("temperature 0", training(temperature=0), "recipe.yaml: training.temperature must be above 0, not 0."),
        ("a temperature below 0", training(temperature=-1.0), "recipe.yaml: training.temperature must be above 0, not -1.0."),
        ("top_p above 1", training(top_p=1.5), "recipe.yaml: training.top_p must be above 0 and at most 1, not 1.5."),
        ("a learning rate below 0", training(learning_rate=-1e-5), "recipe.yaml: training.learning_rate must be at least 0 and at most 1, not -1e-05."),
        ("an absurd learning rate", training(learning_rate=10.0), "recipe.yaml: training.learning_rate must be at least 0 and at most 1, not 10.0."),
        ("a learning rate that is no number", training(learning_rate=float("nan")), "recipe.yaml: training.learning_rate must be at least 0 and at most 1, not nan."),
        ("a seed that is too large", training(seed=2**40), "recipe.yaml: training.seed must be at least 0 and below 2**32, not 1099511627776."),
        ("a batch of nothing", training(per_device_train_batch_size=0), "recipe.yaml: training.per_device_train_batch_size must be at least 1, not 0."),
        ("no epochs", training(num_train_epochs=0), "recipe.yaml: training.num_train_epochs must be above 0, not 0."),
        ("an unknown tracker", training(report_to="wandbb"), "training.report_to: tracker 'wandbb' does not exist: did you mean 'wandb'? Valid: ..."),
        ("a tracker that is not installed", {**training(report_to="mlflow"), "machine": {}}, "training.report_to: mlflow needs the package mlflow, which is not installed: pip install mlflow."),
        ("wandb without a key", {**training(report_to="wandb"), "machine": {"wandb": False}}, "training.report_to: wandb knows no API key: run `wandb login`, or set WANDB_MODE=offline in the environment to keep the logs here."),
    ],
    "Run folders": [
        ("a run folder without a name", training(output_dir=""), "recipe.yaml: training.output_dir must name a folder in at most 255 letters."),
        ("a run folder with too long a name", training(output_dir="a" * 300), "recipe.yaml: training.output_dir must name a folder in at most 255 letters."),
        ("a run folder that is a file", training(output_dir="rows.jsonl"), "training.output_dir rows.jsonl cannot be a folder, as rows.jsonl is a file: name another."),
        ("a run folder in a file", training(output_dir="rows.jsonl/run"), "training.output_dir rows.jsonl/run cannot be a folder, as rows.jsonl is a file: name another."),
        ("a run folder that cannot be written", {**training(output_dir="locked/run"), "machine": {"locked": "locked"}}, "training.output_dir locked/run cannot be written, as you have no right to write in ...locked: name another folder."),
        ("the root folder", training(output_dir="/"), "training.output_dir / is or holds your home folder: name a folder of its own, such as runs/my_task."),
        ("the home folder", training(output_dir="../home"), "training.output_dir ../home is or holds your home folder: name a folder of its own, such as runs/my_task."),
        ("a run folder that begins with ~", training(output_dir="~/run"), "training.output_dir ~/run begins with a folder called ~: write the path of the home folder out."),
        ("the folder one works in", training(output_dir="."), "training.output_dir . is or holds the folder you work in: name a folder of its own, such as runs/my_task."),
        ("a run folder outside of the folder one works in", training(output_dir="../run"), "training.output_dir ../run leads out of the folder you work in: write .../run if you mean that."),
        ("a run folder that holds other files", {"files": {"run/thesis.txt": "precious"}}, "run holds files that are not a run of ours: set another training.output_dir."),
        ("the data in the run folder", {**data(path="run/rows.jsonl"), "files": {"run/rows.jsonl": rows()}}, "'run/rows.jsonl' lies in the run folder run: set another training.output_dir."),
        ("the model as the run folder", training(output_dir="model"), "'model' lies in the run folder model: set another training.output_dir."),
        ("another recipe's run", {"files": {"run/environment.json": "{}", "run/recipe.yaml": {**SOUND, "training": {"output_dir": "run", "seed": 1}}}}, "run holds another recipe's run (training.seed was 1, is 'not set'): set another training.output_dir, or replace it with --force."),
        ("a run folder whose recipe is damaged", {"files": {"run/environment.json": "{}", "run/recipe.yaml": "method: [\n"}}, "run/recipe.yaml, line 2 is not valid YAML: did not find expected node content."),
        ("no room for a checkpoint", {"machine": {"weights": 5 * 10**9, "free": 10**10}}, "training.output_dir run: the model and a checkpoint take 20.0 GB or more, and 10.0 GB are free there: make room, or name a folder on another disk."),
        ("more GPUs than there are", said("run", "recipe.yaml", "--accelerate", "multi_gpu", "--num_processes", "8", machine={"gpus": 2}), "8 processes on this machine need as many GPUs, and torch sees 2: set --num_processes."),
        ("a GPU where there is none", said("run", "recipe.yaml", "--accelerate", "single_gpu", machine={"gpus": 0}), "--accelerate single_gpu needs a GPU, and torch sees none: use --accelerate cpu."),
        ("an unknown launch", said("run", "recipe.yaml", "--accelerate", "multi_gpus"), "--accelerate 'multi_gpus' is no file and none of cpu, ..., did you mean 'multi_gpu'?"),
        ("no processes", said("run", "recipe.yaml", "--num_processes", "0"), "--num_processes must be at least 1, not 0."),
    ],
    "Evaluation": [
        ("an unknown metric", evaluation(metrics=["lenght"]), "Reward 'lenght' does not exist: did you mean 'length'? Valid: ..."),
        ("a metric with a gate", evaluation(metrics=[{"format": {"pattern": "a", "gate": 1}}]), "evaluation.metrics: 'format' has a gate, which only rewards have: drop it there."),
        ("no rows to look at", evaluation(rows=0), "recipe.yaml: evaluation.rows must be at least 1, not 0."),
        ("a look at every 0th step", evaluation(every=0), "recipe.yaml: evaluation.every must be at least 1, not 0."),
        ("temperature 0 for samples", evaluation(temperature=0), "recipe.yaml: evaluation.temperature must be above 0, not 0."),
        ("top_p above 1 for samples", evaluation(top_p=2), "recipe.yaml: evaluation.top_p must be above 0 and at most 1, not 2."),
        ("several samples where there is none", evaluation(samples=4, sampled=False), "recipe.yaml: evaluation.samples draws nothing with evaluation.sampled: false: drop one."),
        ("vLLM in a stage that trains", evaluation(use_vllm=True), "evaluation.use_vllm is for runs that are finished, and a stage looks with the model that it trains: drop it here, and say it to `lastmile evaluate`."),
        ("an unknown baseline", evaluation(baselines=["leed"]), "evaluation.baselines: baseline 'leed' does not exist: did you mean 'lead'? Valid: ..."),
        ("a run to post-process that is none", {"change": {"method": "evaluate", "model": None, "rewards": None, "evaluation": {"runs": ["model"], "postprocess": ["modle"]}}}, "evaluation.postprocess: run 'modle' does not exist..."),
        ("no runs to compare", {"change": {"method": "evaluate", "model": None, "rewards": None}}, "recipe.yaml: evaluation.runs is missing: the run folders to compare, the baseline first."),
        ("a run that is named by a number", {"change": {"method": "evaluate", "model": None, "rewards": None, "evaluation": {"runs": [3]}}}, "recipe.yaml: evaluation.runs holds 3: name run folders or models."),
        ("a run twice", {"change": {"method": "evaluate", "model": None, "rewards": None, "evaluation": {"runs": ["model", "model"]}}}, "A run is named twice: model, model."),
    ],
    "Guidance": [
        ("no mode", {"change": {"guidance": {"guide": "base"}}}, "recipe.yaml: guidance.mode is missing: one of ppo++, drpo, aggrevated, lols, d2lols."),
        ("an unknown mode", guided(mode="pp0++"), "recipe.yaml: guidance.mode must be one of ppo++, drpo, aggrevated, lols, d2lols, not 'pp0++'."),
        ("no guide", guided(guide=None), "recipe.yaml: section `guidance`: mode ppo++ needs a guide: base, a model, package.module:function, or an endpoint."),
        ("a guide that is not there", guided(guide="./nowhere"), "guidance.guide names a model: './nowhere' is not a folder here: check the path, or run its stage first."),
        ("a guide of a module that does not exist", guided(guide="nowhere:guide"), "Guide 'nowhere:guide': importing 'nowhere' failed with ModuleNotFoundError: ..."),
        ("a probability above 1", guided(probability=2.0), "recipe.yaml: section `guidance`: probability must be between 0 and 1, not 2.0."),
        ("shares of training the wrong way round", guided(anneal=[1, 0]), "recipe.yaml: section `guidance`: anneal must be two shares of training such as [0.5, 1.0], or null, not [1, 0]."),
        ("sampling that is none", guided(sampling={"top_q": 1}), "recipe.yaml: section `guidance`: sampling takes temperature, top_p, top_k, min_p, not 'top_q'."),
        ("guidance of SFT", {"change": {"method": "sft", "rewards": [], "guidance": {"mode": "drpo"}}}, "recipe.yaml: `method: sft` has no roll-outs to guide: drop the section `guidance`, or use grpo, rloo, ppo."),
    ],
    "Preferences": [
        ("no pairs", pairs(negatives=None), "recipe.yaml: `method: reward` needs pairs: preferences.negatives to make bad answers of the references, ..."),
        ("pairs for GRPO", {"change": {"preferences": {"negatives": {"truncated": 1}}}}, "recipe.yaml: `method: grpo` has no use for pairs: drop the section `preferences`."),
        ("an unknown kind of bad answers", pairs(negatives={"shufled": 1}), "preferences.negatives: category 'shufled' does not exist: did you mean 'shuffled'? Valid: ..."),
        ("one column of a pair", pairs(chosen="source"), "recipe.yaml: preferences.chosen and preferences.rejected name the two columns of a pair: set both."),
        ("a column of a pair that is not there", pairs(negatives=None, chosen="sorce", rejected="target"), "preferences.chosen: 'rows.jsonl' has no column 'sorce', only ..., did you mean 'source'?"),
        ("an accuracy above 1", pairs(require={"accuracy": 95}), "preferences.require.accuracy must be a number between 0 and 1, not 95."),
        ("an unknown requirement", pairs(require={"acuracy": 0.9}), "preferences.require: key 'acuracy' does not exist: did you mean 'accuracy'? Valid: ..."),
        ("samples where nothing writes", pairs(samples={"per_prompt": 4}), "recipe.yaml: preferences.samples asks the model: do it in a stage of `method: pairs`, whose run folder is data.path here."),
    ],
    "The Hub": [
        ("a push without a name", hub(push=True), "recipe.yaml: hub.push is true but hub.repo is missing: write repo: me/my-model."),
        ("a push of a comparison", {"change": {"method": "evaluate", "model": None, "rewards": None, "evaluation": {"runs": ["model"]}, "hub": {"push": True, "repo": "me/x"}}}, "recipe.yaml: `method: evaluate` makes no model to push: drop hub.push."),
        ("a push without a token", hub(push=True, repo="me/my-model"), "There is no Hub token to push with: run `hf auth login` or set HF_TOKEN."),
        ("a name with a space", hub(repo="me/my model"), "recipe.yaml: hub.repo 'me/my model' is not the name of a Hub repository: write `me/my-model`."),
        ("an address instead of a name", hub(repo="https://huggingface.co/me/my-model"), "recipe.yaml: hub.repo 'https://huggingface.co/me/my-model' is not the name of a Hub repository: write `me/my-model`."),
        ("a merge without an adapter", hub(merge=True), "hub.merge is true, but without model.use_peft there is no adapter to merge: drop it."),
    ],
    "Other commands": [
        ("`copy` of a recipe that does not exist", said("copy", "samsun", "mine"), "No recipe 'samsun': not a file or folder here, and not a shipped one ..."),
        ("`copy` to a place that is taken", said("copy", "samsum", "model"), "model exists already: choose another place, or delete it."),
        ("`copy` of a path", said("copy", "model", "mine"), "'model' is a path here, not a shipped recipe; `lastmile recipes` lists those."),
        ("`copy` into a file", said("copy", "samsum", "rows.jsonl/mine"), "rows.jsonl/mine lies in rows.jsonl, which is a file: choose another place."),
        ("`rewards` of an unknown name", said("rewards", "rogue"), "Reward 'rogue' does not exist: did you mean 'rouge'? Valid: ..."),
        ("`score` of a file that does not exist", said("score", "nowhere.jsonl", "--reward", "rouge"), "nowhere.jsonl is no file: name one with a `prediction` and a `references` column."),
        ("`score` without predictions", said("score", "said.jsonl", "--reward", "rouge", files={"said.jsonl": [{"references": "a"}]}), "Row 0 has no `prediction` (or `completion`), only: references."),
        ("`score` without references", said("score", "said.jsonl", "--reward", "rouge", files={"said.jsonl": [{"prediction": "a"}]}), "Reward 'rouge/rougeL' needs a column 'references', which said.jsonl has not; columns are prediction."),
        ("`score` with an unknown reward", said("score", "rows.jsonl", "--reward", "roge"), "Reward 'roge' does not exist: did you mean 'rouge'? Valid: ..."),
        ("`score` with arguments that are none", said("score", "rows.jsonl", "--reward", "rouge:rougeL"), "--reward 'rouge:rougeL': write NAME:key=value,key=value; quote a value that holds a comma."),
        ("`evaluate` of a run that does not exist", said("evaluate", "./nowhere", "--data", "recipe.yaml"), "'./nowhere' is not a folder here: check the path, or run its stage first."),
        ("`evaluate` with a recipe that does not exist", said("evaluate", "model", "--data", "nowhere.yaml"), "No recipe 'nowhere.yaml': ..."),
        ("`evaluate` with a requirement that is none", said("evaluate", "model", "--data", "recipe.yaml", "--require", "good"), "--require 'good' is no requirement: write METRIC>=NUMBER, or RUN:METRIC<NUMBER."),
        ("`evaluate` with a requirement of no metric", said("evaluate", "model", "--data", "recipe.yaml", "--require", "rogue>1"), "--require 'rogue>1': metric 'rogue' does not exist..."),
        ("`report` of nothing", said("report"), "Which run? Name its folder, as in `lastmile report runs/my_task/grpo`."),
        ("`report` of what is no run", said("report", "model"), "model holds no recipe.yaml, so it is no run to report on: name a run's folder."),
        ("`report` of a run that has not finished", said("report", "run", files={"run/recipe.yaml": SOUND}), "run has no evaluation.json to report on, as it has not finished: `lastmile report run --watch` shows how it goes."),
        ("`generate` of a model that does not exist", said("generate", "./nowhere", "--prompt", "a"), "'nowhere' is not a folder here, not in the cache, and the Hub cannot be reached (offline?): check the name or the connection."),
        ("`generate` of a folder without a model", said("generate", "empty", "--prompt", "a", files={"empty": None}), "'empty' holds no model: ..."),
        ("`generate` with a temperature below 0", said("generate", "model", "--prompt", "a", "--temperature", "-1"), "--temperature must be at least 0, --max_new_tokens at least 1, and --prompt must say something."),
        ("`generate` from a file without a recipe", said("generate", "model", "--file", "rows.jsonl"), "model holds no recipe.yaml to make prompts of --file with: use --prompt."),
        ("`generate` from a file that does not exist", said("generate", "run", "--file", "nowhere.jsonl", files={"run/recipe.yaml": SOUND}), "data.path 'nowhere.jsonl' does not exist: ..."),
        ("`merge` of what is no adapter", said("merge", "model", "merged"), "model holds no adapter (no adapter_config.json), so there is nothing to merge."),
        ("`merge` into a folder with files", said("merge", "adapter", "model", files={"adapter/adapter_config.json": "{}"}), "model is not empty: name a new folder for the merged model."),
        ("`merge` into a file", said("merge", "adapter", "rows.jsonl", files={"adapter/adapter_config.json": "{}"}), "rows.jsonl is a file: name a new folder for the merged model."),
        ("`push` of what is no run", said("push", "model", "me/mine"), "model is not a run folder: it has no recipe.yaml; name a folder `lastmile run` made."),
        ("`push` to a name that is none", said("push", "run", "my mine", files={"run/recipe.yaml": SOUND}), "'my mine' is not the name of a Hub repository: write `name` or `me/name`."),
        ("`pairs` of a recipe without preferences", said("pairs", "recipe.yaml"), "recipe.yaml: `method: pairs` needs pairs: ..."),
    ],
}  # fmt: skip

CASES = [Case(wrong, says, **more) for theme in TABLE.values() for wrong, more, says in theme]
