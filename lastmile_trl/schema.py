"""Which keys a config class takes, read from its source: importing TRL's classes costs seconds, a typo should not."""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

# Bases that a module imports from a package's front door, and the module they live in.
_HOMES = {"TrainingArguments": "transformers.training_args"}
_ENUMERATIONS = ("transformers.trainer_utils", "transformers.training_args")


@cache
def annotations(path: str) -> dict[str, str]:
    """Field name -> annotation of the dataclass at ``module:Class``, its bases included.

    >>> annotations("trl.trainer.model_config:ModelConfig")["lora_r"]
    'int'
    """
    return {name: ast.unparse(node.annotation) for name, node in _fields(path).items()}


def default(path: str, name: str) -> Any:
    """The default of a field, where the source writes it as a constant.

    >>> default("trl.trainer.grpo_config:GRPOConfig", "num_generations")
    8
    """
    value = _fields(path)[name].value
    if isinstance(value, ast.Call):
        value = next(keyword.value for keyword in value.keywords if keyword.arg == "default")
    return ast.literal_eval(value)


def choices(path: str, name: str) -> list[str] | None:
    """The values a field may have, where its metadata or an enumeration lists them.

    >>> choices("trl.trainer.model_config:ModelConfig", "dtype")
    ['auto', 'bfloat16', 'float16', 'float32']
    >>> choices("trl.trainer.grpo_config:GRPOConfig", "save_strategy")
    ['no', 'steps', 'epoch', 'best']
    """
    value = _fields(path)[name].value
    for keyword in value.keywords if isinstance(value, ast.Call) else []:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, listed in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices":
                    return ast.literal_eval(listed)
    return next(filter(None, map(_members, _union(annotations(path)[name]))), None)


def keys(module: str, name: str) -> list[str]:
    """The keys of a dictionary that a module's source writes out.

    >>> "wandb" in keys("transformers.integrations.integration_utils", "INTEGRATION_TO_CALLBACK")
    True
    """
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return [ast.literal_eval(key) for key in node.value.keys]
    raise LookupError(f"{module} has no dictionary {name}")


@cache
def _members(kind: str) -> list[str] | None:
    """The values of an enumeration of the trainers' settings; None for any other type."""
    for module in _ENUMERATIONS:
        for node in _tree(module).body:
            if (
                isinstance(node, ast.ClassDef)
                and node.name == kind
                and [ast.unparse(base) for base in node.bases] == ["ExplicitEnum"]
            ):
                return [ast.literal_eval(line.value) for line in node.body if isinstance(line, ast.Assign)]
    return None


@cache
def _fields(path: str) -> dict[str, ast.AnnAssign]:
    module, name = path.split(":")
    tree = _tree(module)
    definition = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and (home := _home(base.id, module, tree)):
            fields |= _fields(f"{home}:{base.id}")
    return fields | {
        node.target.id: node
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_")
    }


@cache
def _tree(module: str) -> ast.Module:
    package, *rest = module.split(".")
    # Finding a top-level package does not import it.
    folder = Path(importlib.util.find_spec(package).origin).parent
    return ast.parse(folder.joinpath(*rest).with_suffix(".py").read_text(encoding="utf-8"))


def _home(name: str, module: str, tree: ast.Module) -> str | None:
    """The module that defines a base class, None for one that has no fields to offer."""
    if name in _HOMES:
        return _HOMES[name]
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
        return module
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            if node.level:
                return ".".join([*module.split(".")[: -node.level], node.module])
            return node.module if "." in node.module else None
    return None


_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "list": list, "dict": dict}


def accepts(annotation: str, value: object) -> bool:
    """Whether a value from YAML fits an annotation; annotations it does not know accept everything.

    >>> accepts("float | None", 1), accepts("int", 2.5), accepts("bool", 1), accepts("str | list[str]", ["a"])
    (True, False, False, True)
    """
    types = []
    for part in _union(annotation):
        kind = part.split("[")[0].strip("'\" ")
        if kind == "None":
            types.append(type(None))
        elif kind in _TYPES:
            types.append(_TYPES[kind])
            if part == "list[str]":  # one name stands for a list of one, as in `lora_target_modules: all-linear`
                types.append(str)
        else:
            return True
    if isinstance(value, bool):  # a bool is an int to Python, not to a reader
        return bool in types
    return any(isinstance(value, kind) for kind in types)


def _union(annotation: str) -> list[str]:
    """The members of ``A | B[C | D]``, without splitting inside brackets."""
    parts, depth = [""], 0
    for char in annotation:
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
