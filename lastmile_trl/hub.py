"""The push of a run to the Hub, with its card."""

import json
import shlex
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import provenance, run_folder
from .card import model_card
from .errors import InputError
from .merge import merge as merge_into_base
from .models import trusts_remote_code
from .patience import patiently, reaching_hub
from .recipe import IN_ONE_PROCESS, Recipe

# All that is ever pushed. Checkpoints, completions, outputs, the history and training_args.bin hold users' data,
# optimizer states and settings of this machine.
PUBLISHED = (
    "README.md", "recipe.yaml", "evaluation.json",
    "model*.safetensors", "model.safetensors.index.json", "adapter_model*.safetensors",  # a critic stays here
    "adapter_config.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template.jinja",
)  # fmt: skip


def check_access(repo: str) -> None:
    """Raise if a push to ``repo`` could not succeed: no valid token, or no right to write there."""
    with reaching_hub(f"The Hub could not be asked whether you may push to {repo}", "check the connection"):
        _owner_and_name(repo)


def command(
    run: Path,
    repo: str,
    *,
    private: bool = True,
    merge: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """The command that pushes a run.

    >>> command(Path("runs/notes/grpo"), "me/notes", merge=True)
    'lastmile push runs/notes/grpo me/notes --merge'
    """
    flags = {"--merge": merge, "--public": not private, "--create-pr": create_pr}
    flags["--trust-remote-code"] = merge and trusts_remote_code()
    words = ["lastmile", "push", str(run), repo, *(flag for flag, given in flags.items() if given)]
    return shlex.join([*words, *(["--revision", revision] if revision else [])])


def options_of(recipe: Recipe) -> dict[str, Any]:
    """How a recipe wants its run to be pushed."""
    return {"private": recipe.hub.private, "merge": recipe.hub.merge, "revision": recipe.hub.revision}


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
    if create_pr and revision:
        raise InputError(f"A pull request goes to the main branch: leave out --create-pr or --revision {revision}.")
    again = command(run, repo, private=private, merge=merge, revision=revision, create_pr=create_pr)
    reaching = partial(reaching_hub, f"{run} was not pushed to {repo}", f"push it again with `{again}`")
    owner, name = patiently(partial(_owner_and_name, repo, may_write=not create_pr), reaching)
    upload = partial(_upload, repo=name, private=private, revision=revision, proposer=owner if create_pr else None)
    if merge:
        # Inside the run folder there is room for a model; in the system's folder for temporary files often not.
        with TemporaryDirectory(dir=run, prefix="merged-") as folder:
            merged = merge_into_base(run, Path(folder) / run.resolve().name)
            address = _upload_files(merged, name, upload, reaching)
    else:
        address = _upload_files(run, name, upload, reaching)
    run_folder.has_arrived(run, address)
    return address


def _upload_files(run: Path, repo: str, upload: Callable[..., str], reaching: Callable) -> str:
    return patiently(partial(upload, _files(run, repo), f"Push {run.resolve().name} with lastmile_trl"), reaching)


def _upload(
    files: dict[str, Path | bytes],
    title: str,
    *,
    repo: str,
    private: bool,
    revision: str | None,
    proposer: str | None,
) -> str:
    """Bring the repository to hold these files; what is there already is not sent again."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise InputError(
            f"{repo} exists and is public, but a private push was asked for: make it private in its settings, "
            "name another repository, or push with --public."
        )
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    number = _open_proposal(repo, title, proposer) if proposer else None
    if number:
        revision = f"refs/pr/{number}"
    there = api.list_repo_files(repo, revision=revision)
    stale = [name for name in there if _is_published(name) and name not in files]
    commit = api.create_commit(
        repo,
        [
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=title,
        revision=revision,
        create_pr=bool(proposer and not number),
    )
    if number:
        return f"{api.endpoint}/{repo}/discussions/{number}"
    return commit.pr_url or f"{api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")


def _open_proposal(repo: str, title: str, author: str) -> int | None:
    """The number of the author's open pull request of this title: a second push, or attempt, goes on with it."""
    from huggingface_hub import HfApi

    proposals = HfApi().get_repo_discussions(
        repo, author=author, discussion_type="pull_request", discussion_status="open"
    )
    return next((proposal.num for proposal in proposals if proposal.title == title), None)


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


def _owner_and_name(repo: str, may_write: bool = True) -> tuple[str, str]:
    """Who the token belongs to, and the repository's name with its namespace; asks the Hub what the token may do."""
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
    return user["name"], name


def _check_may_write(user: dict[str, Any], repo: str) -> None:
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"The token of {user['name']} may only read: make one that may write, then `hf auth login` or set HF_TOKEN."
        )
    writable = [user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")]
    owner = repo.split("/")[0]
    if owner not in writable:
        raise InputError(f"{user['name']} may not push to {owner!r}, only to {', '.join(writable)}.")
