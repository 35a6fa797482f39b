"""Names on the Hub become commits: a run that goes on, or is made again, reads what it read the first time.

A branch such as `main` moves. So the commit that a name stood for is asked for once, written into run.json, and loaded
from then on, however the branch has moved since. Where a key has no revision of its own beside it (`model_revision`
has), the name may carry one: `owner/name@v1.0`, `owner/name@0123abc...`. Without a network the cache of huggingface_hub
knows which commit it holds.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from suite import checkpoint
from suite.args import say

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
# Key of a name -> (what it names, key of its revision; None where the name itself carries it).
KEYS = {
    "model_name_or_path": ("model", "model_revision"),
    "teacher_model_name_or_path": ("model", "teacher_model_revision"),
    "tokenizer_name_or_path": ("model", None),
    "compare_with": ("model", None),
    "chat_template_path": ("model", None),
    "dataset_name": ("dataset", None),
    "eval_answers_dataset": ("dataset", None),
}
# What every repository of a kind has; to ask for it is to learn the commit, online and from the cache.
_ASKED_FOR = {"model": "config.json", "dataset": "README.md"}
_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*")


def is_on_hub(name: str | None, *, bare: bool = True) -> bool:
    """Whether a name means a repository on the Hub; one without an owner only where `bare` says so."""
    if not name or checkpoint.is_local(name) or Path(name).suffix in (*checkpoint.READ, ".j2"):  # a file that is gone
        return False
    repository = split(name)[0]
    return bool(_NAME.fullmatch(repository)) and (bare or "/" in repository)


def split(name: str) -> tuple[str, str | None]:
    """(repository, revision or None) of `owner/name@revision`."""
    repository, mark, revision = name.partition("@")
    if not mark or checkpoint.is_local(name):
        return name, None
    if not revision:
        raise ValueError(f"'{name}' names no revision behind the @: a branch, a tag or a commit.")
    return repository, revision


def where(name: str | Path) -> tuple[str, str]:
    """(repository or directory, revision) for `from_pretrained`; of an adapter here that of its base, as PEFT notes it.

    A name on the Hub may carry its revision behind an @.
    """
    repository, revision = split(str(name))
    path = Path(repository) / "adapter_config.json"
    noted = checkpoint.read_json(path).get("revision") if path.is_file() else None
    return repository, revision or noted or "main"


def at_commit(name: str, known: str | None = None) -> str:
    """`owner/name@commit` for a model on the Hub, or as it is `known` already; any other name as it is."""
    if not is_on_hub(name):
        return name
    if known is not None and split(known)[0] == split(name)[0]:
        return known
    repository, revision = split(name)
    return f"{repository}@{commit_of(repository, 'model', revision)}"


def commit_of(name: str, kind: str, revision: str | None = None) -> str:
    """The commit that a revision of a repository is: on the Hub or, where that cannot be reached, in the cache.

    Raises `ValueError` where neither knows it.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    revision = revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    known = _reference(name, kind, revision)
    try:
        if _is_out_of_reach(name, kind, revision):
            raise hub.LocalEntryNotFoundError("")
        found = HfApi().hf_hub_download(name, _ASKED_FOR[kind], repo_type=kind, revision=revision)
        return Path(found).parent.name
    except hub.EntryNotFoundError:  # it has no such file; or there is no network, and the cache may know the name
        if known.is_file():
            return known.read_text(encoding="utf-8").strip()
        told = "the Hub cannot be reached, and it is not in the cache"
    except hub.RevisionNotFoundError:
        told = f"it has no revision '{revision}'"
    except hub.HfHubHTTPError as error:  # the Hub's own refusals
        told = f"the Hub does not give it ({error.response.status_code})"
    except (hub.HFValidationError, httpx.HTTPError, OSError) as error:
        told = " ".join(str(error).split())
    what = {"model": "model", "dataset": "data set"}[kind]
    raise ValueError(
        f"Cannot load the {what} '{name}' (revision {revision}) from the Hub: {told}. If you meant a directory: there "
        "is none of that name here. Check the path; one that begins with ./ is never looked for on the Hub."
    )


def _is_out_of_reach(name: str, kind: str, revision: str) -> bool:
    """Whether there is no connection to the Hub at all, asked once: a download would try six times.

    A Hub that is slow or busy is left to the download, which has the patience for it, and the cache.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=5, expand=["sha"])
    except (hub.OfflineModeIsEnabled, httpx.ConnectError, httpx.ConnectTimeout):
        return True
    except (hub.HfHubHTTPError, httpx.HTTPError, ValueError, OSError):
        return False
    return False


def _reference(name: str, kind: str, revision: str) -> Path:
    """Where the cache of huggingface_hub keeps the commit of a branch or a tag."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / revision


def settle(record: dict, config, *parts) -> None:
    """Put a commit in the place of every revision in `config` and `parts`, the parsed keys of a run, in place.

    They go into the `record` of the run, {kind, name, revision, commit} each. A run that goes on has its commits
    already, and a line says where a branch has moved since. Under a launcher rank 0 asks, and the others hear from it.
    """
    parts = (config, *parts)
    asked = list(dict.fromkeys((kind, *found) for part in parts for kind, found in _names(part)))
    pinned, told = _on_rank_0(lambda: _pinned(asked, _known(config.output_dir, config.resume_from_checkpoint)))
    commits = {(p["kind"], p["name"], p["revision"]): p["commit"] for p in pinned}
    for part in parts:
        _write(part, commits)
    for line in told:
        say(line)
    record["pins"] = pinned


def _pinned(asked: list[tuple], known: dict[tuple, str]) -> tuple[list[dict], list[str]]:
    pinned, told = [], []
    for kind, name, revision in asked:
        commit = known.get((kind, name, revision))
        if commit is None:
            commit = commit_of(name, kind, revision)
        elif now := _moved_to(name, kind, revision, commit):
            told.append(
                f"{name}: {revision} has moved on to {now[:12]}; this run stays with {commit[:12]}, as it began."
            )
        pinned.append({"kind": kind, "name": name, "revision": revision, "commit": commit})
    return pinned, told


def _moved_to(name: str, kind: str, revision: str, commit: str) -> str | None:
    """The commit that a revision is by now, where it is another one; without a network nobody knows."""
    import httpx
    from huggingface_hub import HfApi

    try:
        now = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=5).sha
    except (httpx.HTTPError, OSError):  # it is only for a word by the way, so nothing is tried twice
        return None
    return now if now != commit else None


def _known(directory: str, resumed_from: str | None) -> dict[tuple, str]:
    """(kind, name, revision) -> the commit that the run in a directory, or of a checkpoint, was pinned to."""
    records = [Path(place) / "run.json" for place in (resumed_from, directory) if place]
    record = next((checkpoint.read_json(path) for path in records if path.is_file()), {})
    return {(p["kind"], p["name"], p["revision"]): p["commit"] for p in record.get("pins", [])}


def _on_rank_0(ask):
    """What `ask` returns on rank 0, on every rank."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ask()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([ask() if PartialState().is_main_process else None])[0]


def _names(part):
    """(kind, (repository, revision)) of every name on the Hub in one dataclass of parsed keys."""
    there = {f.name for f in fields(part)}
    for key in KEYS.keys() & there:
        kind, revision_key = KEYS[key]
        name = getattr(part, key)
        if is_on_hub(name):
            yield kind, _asked(part, name, revision_key if revision_key in there else None)
    for entry in part.datasets or [] if "datasets" in there else []:
        if is_on_hub(entry.path, bare=False):  # `parquet`, `json`: those are kinds of files
            yield "dataset", _asked(entry, entry.path, None)
    for name in part.reward_funcs if "reward_funcs" in there else []:
        if is_on_hub(name, bare=False):
            yield "model", _asked(part, name, None)


def _asked(part, name: str, revision_key: str | None) -> tuple[str, str]:
    """(repository, revision that is asked for)."""
    repository, revision = split(name)
    if revision_key and revision:
        raise ValueError(f"'{name}': the revision of this name goes by its own key, `{revision_key}: {revision}`.")
    return repository, (getattr(part, revision_key) if revision_key else revision) or "main"


def _write(part, commits: dict[tuple, str]) -> None:
    """Put the commits into one dataclass of parsed keys.

    TRL gives no revision to what `chat_template_path` names, so that becomes the directory where the cache holds it. A
    reward's name stays as it is: schedules and logs go by it.
    """
    there = {f.name for f in fields(part)}
    for key in KEYS.keys() & there:
        kind, revision_key = KEYS[key]
        name = getattr(part, key)
        if not is_on_hub(name):
            continue
        repository, revision = _asked(part, name, revision_key if revision_key in there else None)
        commit = commits[kind, repository, revision]
        if key == "chat_template_path":
            setattr(part, key, _tokenizer_at(repository, commit))
        elif revision_key in there:
            setattr(part, revision_key, commit)
        else:
            setattr(part, key, f"{repository}@{commit}")
    for entry in part.datasets or [] if "datasets" in there else []:
        if is_on_hub(entry.path, bare=False):
            repository, revision = _asked(entry, entry.path, None)
            entry.path = f"{repository}@{commits['dataset', repository, revision]}"


def _tokenizer_at(name: str, commit: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().snapshot_download(name, revision=commit, allow_patterns=list(_TOKENIZER))
    except OSError as error:  # the network and the Hub's own refusals
        raise ValueError(f"chat_template_path: cannot load the tokenizer of '{name}': {error}") from error


@contextmanager
def in_vllm(config, model) -> Iterator[None]:
    """In this block the vLLM that TRL starts beside a trainer reads the model at the commit of the run.

    TRL gives it the name alone, and so the newest config, tokenizer and stop tokens beside the weights of the policy.
    A vLLM server was started by somebody else; what it has to serve is said.
    """
    if not config.use_vllm or not is_on_hub(model.model_name_or_path):
        yield
        return
    if config.vllm_mode == "server":
        say(
            "the vLLM server gets nothing but weights from this run. It must have been started with "
            f"`vllm serve {model.model_name_or_path} --revision {model.model_revision}`."
        )
        yield
        return
    from unittest.mock import patch

    from trl.generation import vllm_generation

    commit = model.model_revision
    pinned = functools.partial(vllm_generation.LLM, revision=commit, tokenizer_revision=commit)
    with patch.object(vllm_generation, "LLM", pinned):
        yield


def load_dataset(path: str, **how):
    """`datasets.load_dataset`, which reads a data set `owner/name@revision` at that very commit.

    Without a network, `datasets` falls back on whatever it cached last, of any revision, and only warns. Raises
    `ValueError` where the cache does not hold the commit.
    """
    from datasets import config
    from datasets.load import load_dataset, load_dataset_builder

    name, revision = split(path)
    if revision is None:
        return load_dataset(path, **how)
    commit = commit_of(name, "dataset", revision)
    part, streaming = how.pop("split", None), how.pop("streaming", False)
    builder = None if config.HF_HUB_OFFLINE else load_dataset_builder(name, revision=commit, **how)
    if builder is None or builder.hash != commit:
        builder = _cached(name, commit, **how)
    if streaming:
        return builder.as_streaming_dataset(split=part)
    builder.download_and_prepare()
    return builder.as_dataset(split=part)


def _cached(repository: str, commit: str, **how):
    """What `datasets` has in its cache of one commit. https://huggingface.co/docs/datasets/cache"""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, last = repository.split("/")
    folder = Path(config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(last)])
    there = [] if how.get("data_files") or how.get("data_dir") else folder.glob(f"{how.get('name') or '*'}/*/{commit}")
    # One that was made of some of its files only has another name than its configuration.
    there = [p for p in there if checkpoint.read_json(p / "dataset_info.json")["config_name"] == p.parts[-3]]
    if len(there) != 1:
        many = f" Which of {', '.join(sorted(p.parts[-3] for p in there))}? Set `dataset_config`." if there else ""
        raise ValueError(
            f"The Hub does not give it, and the cache does not hold '{repository}' as of its commit {commit}.{many}"
        )
    version = there[0].parts[-2]
    return Cache(dataset_name=last, repo_id=repository, config_name=there[0].parts[-3], version=version, hash=commit)
