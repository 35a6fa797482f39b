"""To the Hub: what is sent, under which name, and every refusal of the Hub's as one line.

The token is the one that `hf auth login` or HF_TOKEN gives to huggingface_hub; nothing here reads or writes it.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite import card

# Weights as safetensors and what is needed to read them; no pickle, which can run code where it is loaded.
SENT = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.py", "*.md", "*.png")
KEPT = (".*", "run.json", "trainer_state.json", "results.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# What the Hub writes itself, people edit there, or is written anew when there is more to tell.
_THEIRS = (".gitattributes", card.NAME, card.CURVES, card.BEFORE_AFTER)


def check_name(key: str, repo: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{key}: '{repo}' names no repository; it must be owner/name.")


def check_access() -> str:
    """The name of the account whose token is used. Raises `ValueError` where there is no network, or no good token."""
    from huggingface_hub import HfApi

    with one_line("the Hub"):
        return HfApi().whoami()["name"]


def full_name(repo: str) -> str:
    """owner/name of a repository of the account whose token is used; it must have a token, and a network."""
    name = check_access()
    repo = repo if "/" in repo else f"{name}/{repo}"
    check_name("hub_model_id", repo)
    return repo


def leave_out() -> None:
    """Have every upload of this process leave out pickles and what is kept: a Trainer sends all it finds."""
    from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS

    DEFAULT_IGNORE_PATTERNS.extend(p for p in (*PICKLES, *KEPT) if p not in DEFAULT_IGNORE_PATTERNS)


def push(
    directory: Path, repo: str, *, private: bool | None = None, revision: str | None = None, replace: bool = False
) -> str:
    """Send a checkpoint directory to a model repository, and return its address.

    `private` None is as the account has it; a `revision` that is not there yet begins empty. A repository that is there
    is gone on with where it holds nothing but what is sent, as an interrupted push leaves it; else it takes `replace`.
    What the Hub has already is not sent again. Raises `ValueError` for every refusal; no local file is changed.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    files = files_of(directory)
    with one_line(repo):
        there = api.repo_exists(repo)
        if not there:
            api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            first = api.list_repo_commits(repo)[-1].commit_id
            api.create_branch(repo, branch=revision, revision=first, exist_ok=True)
        if (there or revision is not None) and not replace:
            _check_is_ours(api, repo, revision, files)
        api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            allow_patterns=sorted(files),
            delete_patterns=["*.safetensors", "*.safetensors.index.json", "*.bin"] if replace else None,
            revision=revision,
            commit_message=f"{directory.name}, by qwen-suite",
        )
    return f"{api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")


def check_holds_no_model(repo: str, revision: str | None) -> None:
    """Raise `ValueError` where a repository's branch holds weights, which a run that begins would put its own over."""
    from huggingface_hub import HfApi

    api = HfApi()
    with one_line(repo):
        if not api.repo_exists(repo) or not (revision is None or api.revision_exists(repo, revision)):
            return
        there = sorted(path for path in api.list_repo_files(repo, revision=revision) if Path(path).match(SENT[0]))
    if there:
        raise ValueError(
            f"hub_model_id: {repo} is there already and holds a model ({there[0]}), which this run would replace. "
            "Choose another name or a `hub_revision`, or say that you mean it: `hub_replace: true`."
        )


def files_of(directory: Path) -> dict[str, Path]:
    """What of a directory is sent, by its name there."""
    sent = [p for p in sorted(directory.iterdir()) if p.is_file() and any(p.match(pattern) for pattern in SENT)]
    return {path.name: path for path in sent if not any(path.match(pattern) for pattern in KEPT)}


def _check_is_ours(api, repo: str, revision: str | None, files: dict[str, Path]) -> None:
    """Raise `ValueError` where a repository holds a file that is not, byte for byte, one of ours."""
    from huggingface_hub.hf_api import RepoFile

    for entry in api.list_repo_tree(repo, revision=revision, recursive=True):
        if not isinstance(entry, RepoFile) or entry.path in _THEIRS:
            continue
        if entry.path not in files or _differs(entry, files[entry.path]):
            raise ValueError(
                f"{repo} is there already and holds something else: its {entry.path} is not the one to be sent. "
                "Choose another name, a `hub_revision`, or put this in its place with `hub_replace: true`."
            )


def _differs(entry, path: Path) -> bool:
    """By size, then by the hash that the Hub keeps: of large files SHA-256, of small ones git's."""
    if entry.size != path.stat().st_size:
        return True
    if entry.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != entry.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != entry.blob_id  # noqa: S324 (git's own)


@contextmanager
def one_line(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one `ValueError` that says what to do. No message of it shows the token."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise ValueError(
            "No token for the Hub: run `hf auth login`, or set the environment variable HF_TOKEN. Nothing was sent."
        ) from None
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, PermissionError, RuntimeError) as error:
        raise ValueError(f"{_refusal(error, repo)} What is on this machine is untouched.") from None


def _refusal(error: Exception, repo: str) -> str:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub was not asked: HF_HUB_OFFLINE is set."
    if isinstance(error, httpx.TransportError):
        return f"The Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__})."
    if not isinstance(error, HfHubHTTPError):  # one file on its way, by LFS or by xet
        return f"Sending to {repo} broke off ({error}). Run the same command again: what has arrived is not sent twice."
    status = error.response.status_code
    if status == 401:
        return "The Hub does not know this token (401): run `hf auth login` again, or set HF_TOKEN to a valid one."
    if status == 403:
        return f"This token may not write to {repo} (403): it needs the right to write, and the account the repository."
    return f"The Hub refuses {repo} ({status}): {error.server_message or 'without a reason'}."
