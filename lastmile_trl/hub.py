"""The push of a run to the Hub, with its card."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import provenance
from .card import model_card
from .errors import InputError, RunError, first_line
from .merge import merge
from .recipe import IN_ONE_PROCESS

# All that is ever pushed. Checkpoints, completions, outputs, the history and training_args.bin hold users' data,
# optimizer states and settings of this machine.
PUBLISHED = (
    "README.md", "recipe.yaml", "evaluation.json",
    "model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors",  # a critic stays here
    "adapter_config.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template.jinja",
)  # fmt: skip
PATIENCE = 300  # seconds without a sign of life; the Hub client itself would wait for ever


def check_access(repo: str) -> None:
    """Raise if a push to ``repo`` could not succeed: no valid token, or no right to write there."""
    with _reaching_hub(f"The Hub could not be asked whether you may push to {repo}"):
        _full_name(repo)


def push(
    run: Path,
    repo: str,
    *,
    private: bool = True,
    merge: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push what a run made, with its card, in one commit; the address of the result.

    Pushing the same again makes no commit. Files of an earlier push that this one does not have are removed.
    """
    if (method := provenance.recipe_value(run, "method")) in IN_ONE_PROCESS:
        raise InputError(f"{run} holds no model, as `method: {method}` trains none: push a run that does.")
    flags = {"--merge": merge, "--public": not private, "--create-pr": create_pr}
    command = ["lastmile", "push", str(run), repo, *(flag for flag, given in flags.items() if given)]
    again = shlex.join([*command, *(["--revision", revision] if revision else [])])
    hub = partial(_reaching_hub, f"{run} was not pushed to {repo}", f"; push it again with `{again}`")
    with hub():
        name = _full_name(repo, may_write=not create_pr)
    upload = partial(_upload, repo=name, private=private, revision=revision, create_pr=create_pr, hub=hub)
    return _upload_merged(run, upload) if merge else upload(run)


def _upload_merged(run: Path, upload: Callable[[Path], str]) -> str:
    # Inside the run folder there is room for a model; in the system's folder for temporary files often not.
    with TemporaryDirectory(dir=run, prefix="merged-") as folder:
        return upload(merge(run, Path(folder) / run.resolve().name))


def _upload(run: Path, *, repo: str, private: bool, revision: str | None, create_pr: bool, hub: Callable) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = _files(run, repo)
    api = HfApi()
    with hub():
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(
                f"{repo} exists and is public, but a private push was asked for: make it private in its settings, "
                "name another repository, or push with --public."
            )
        if revision and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=revision)
        stale = [name for name in there if _is_published(name) and name not in files]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Push {run.resolve().name} with lastmile_trl",
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or f"{api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")


def _is_published(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PUBLISHED)


def _files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """What is pushed: name in the repository -> file, or content where it differs from the file."""
    if not any(run.glob("*.safetensors")):
        raise InputError(f"{run} holds no model (no *.safetensors): let `lastmile run` finish it first.")
    (run / "README.md").write_text(model_card(run, repo=repo), encoding="utf-8")
    files: dict[str, Path | bytes] = {file.name: file for file in sorted(run.iterdir()) if _is_published(file.name)}
    files["recipe.yaml"] = provenance.to_yaml(provenance.recipe(run)).encode()
    if "evaluation.json" in files:
        files["evaluation.json"] = json.dumps(provenance.evaluation(run), indent=1).encode()
    if (adapter := provenance.read_json(run / "adapter_config.json")) != provenance.portable(adapter):
        files["adapter_config.json"] = json.dumps(provenance.portable(adapter), indent=2, sort_keys=True).encode()
    _check_no_token(run, files)
    return files


def _check_no_token(run: Path, files: dict[str, Path | bytes]) -> None:
    from huggingface_hub import get_token

    token = get_token().encode()
    for name, content in files.items():
        if name.endswith(".safetensors"):
            continue
        if token in (content if isinstance(content, bytes) else content.read_bytes()):
            raise InputError(f"{run / name} holds your Hub token, so nothing was pushed: remove it from that file.")


def _full_name(repo: str, may_write: bool = True) -> str:
    """The repository's name with its namespace, after asking the Hub who the token belongs to and what it may do."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not the name of a Hub repository: write `name` or `me/name`.") from error
    if not get_token():
        raise InputError("There is no Hub token to push with: run `hf auth login` or set HF_TOKEN.")
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise InputError("The Hub refuses the token: run `hf auth login` or set HF_TOKEN to a valid one.") from error
    name = repo if "/" in repo else f"{user['name']}/{repo}"
    if may_write:
        _check_may_write(user, name)
    return name


def _check_may_write(user: dict[str, Any], repo: str) -> None:
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"The token of {user['name']} may only read: make one that may write, then `hf auth login` or set HF_TOKEN."
        )
    writable = [user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")]
    owner = repo.split("/")[0]
    if owner not in writable:
        raise InputError(f"{user['name']} may not push to {owner!r}, only to {', '.join(writable)}.")


@contextmanager
def _reaching_hub(failure: str, remedy: str = "; check the connection") -> Iterator[None]:
    """Say in one sentence what any of the client's many errors means. Only calls to the Hub belong inside."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError

    get_session().timeout = PATIENCE
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client raises all of these
        raise RunError(f"{failure} ({_cause(error)}){remedy}.") from error


def _cause(error: BaseException) -> str:
    """What the Hub answered, or else the innermost error's first line."""
    from huggingface_hub.errors import HfHubHTTPError

    while not isinstance(error, HfHubHTTPError) and error.__cause__:
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        return first_line(error)
    response = error.response
    said = f": {error.server_message}" if error.server_message else ""
    return f"the Hub answered {response.status_code} {response.reason_phrase}{said}".rstrip(".")
