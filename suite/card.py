"""The model card: README.md in a run's directory, told from what lies on disk, with its pictures beside it.

`write` may be called again whenever there is more to tell: after an evaluation, by `suite report`, by `suite export`.
It stands where TRL would put a card of its own, whose `base_model` may be a directory of this machine and which says
nothing of data or results.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from suite import checkpoint, pins, record, whole

NAME = "README.md"
CURVES, BEFORE_AFTER = "curves.png", "before-after.png"
_MARK = "<!-- Written by qwen-suite from the files of the run in '{source}', and written anew by `suite report`. -->"
_MARKED = re.compile(re.escape(_MARK).replace(re.escape("{source}"), "(?P<source>.*)"))
_PATH = re.compile(r"(?<![\w.~/:<-])(?:/[\w.@+-]+){2,}/?")
_SECRET = re.compile(r"\bhf_\w{16,}|\bsk-[\w-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_NAMES_A_SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)
_KINDS = {
    "model_name_or_path": "model",
    "teacher_model_name_or_path": "teacher",
    "tokenizer_name_or_path": "tokenizer",
    "compare_with": "tokenizer",
}
# A line of the cards that TRL and PEFT write on their own.
_THEIRS = ("It has been trained using [TRL]", "<!-- Provide a quick summary of what the model is/does. -->")


def facts(trainer) -> dict:
    """What only the running process knows, for run.json: seeds, machine, size of the model."""
    import platform

    arguments = trainer.args
    return {
        "seeds": {"seed": arguments.seed, "data_seed": arguments.data_seed},
        "hardware": _hardware(arguments.device),
        "engine": _engine(trainer.accelerator),
        "python": platform.python_version(),
        "parameters": _parameters(trainer.model),
    }


def _engine(accelerator) -> str:
    """By the name of its file in accelerate_configs/."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return {"FSDP": "fsdp2", "NO": "one process"}.get(kind, "ddp")


def _parameters(model) -> dict[str, int]:
    from peft import PeftModel

    if isinstance(model, PeftModel):  # which knows how many stand in a byte
        trained, everything = model.get_nb_trainable_parameters()
        return {"all": everything, "trained": trained}
    sizes = [(getattr(p, "ds_numel", None) or p.numel(), p.requires_grad) for p in model.parameters()]  # ZeRO-3 shares
    return {"all": sum(n for n, _ in sizes), "trained": sum(n for n, trained in sizes if trained)}


def _hardware(device) -> str:
    import platform

    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB each"
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = "no GPU used" if device.type == "cpu" else device.type
    return f"{cores} cores of {model.group(1) if model else platform.machine()}, {used}"


def write(directory: str | Path, source: str | Path | None = None, *, pictures: bool = True) -> Path | None:
    """Write the card of the model in a directory and return its path; None where no record of a run is there.

    Of an exported directory `source` is the run, or the checkpoint, that it was made from; once written, its card
    knows. A README.md that somebody else has written stays as it is.
    """
    directory = Path(directory)
    there = (directory / NAME).read_text(encoding="utf-8") if (directory / NAME).is_file() else None
    marked = _MARKED.search(there or "")
    if there is not None and marked is None and not any(line in there for line in _THEIRS):
        return None
    source = Path(source) if source is not None else directory / (marked["source"] if marked else "")
    told = _read(source / "run.json", dict) or {}
    if not {"stage", "config", "inputs", "processes"} <= told.keys():
        return None
    results, rows = _results(directory, source, told)
    if pictures:
        _draw(directory, _history(source, told), results)
    text = "\n\n".join(_parts(directory, source, told, results, rows))
    mark = _MARK.format(source=os.path.relpath(source, directory))
    with whole.file(directory / NAME) as partial:
        page = f"{_front_matter(directory, told)}\n{mark}\n\n{text}\n"
        partial.write_text(without_secrets(page), encoding="utf-8")
    return directory / NAME


def _history(source: Path, told: dict) -> list[dict]:
    """What was logged: of the whole run, up to this checkpoint, or as far as the run has come."""
    is_whole = told.get("finished") or "step" in told
    states = [source, *reversed(checkpoint.steps(source))] if is_whole else [*reversed(checkpoint.steps(source))]
    there = next((d / "trainer_state.json" for d in states if (d / "trainer_state.json").is_file()), None)
    return checkpoint.read_json(there)["log_history"] if there else []


def _draw(directory: Path, history: list[dict], results: list[dict]) -> None:
    """The pictures; one of an earlier card, of which nothing is known any more, goes."""
    found = record.curves(history, record.has_rewards(history))
    judged = [r for r in results if "accuracy" in r["metrics"]]
    for name, known in ((CURVES, found), (BEFORE_AFTER, judged)):
        if not known:
            (directory / name).unlink(missing_ok=True)
    if found:
        record.drawn_once(record.draw_all_curves, found, directory / CURVES)
    if judged:
        record.drawn_once(record.draw_results, judged, directory / BEFORE_AFTER)


# What is true of a model: its ancestors, and what was measured of them.


def _records(told: dict) -> Iterator[dict]:
    """The record of a run, and of each that it goes back to and that still lies here."""
    seen: set[str] = set()
    while told:
        yield told
        name = told.get("config", {}).get("model_name_or_path")
        told = {} if not name or name in seen else _read(Path(name) / "run.json", dict) or {}
        seen.add(name)


def ancestors(told: dict) -> dict[str, bool]:
    """The models a run was made from, oldest first, and whether each is one on the Hub; the others lie here."""
    found: dict[str, bool] = {}
    for made in _records(told):
        name = made.get("config", {}).get("model_name_or_path")
        if name and name not in found:
            # What was a directory then is none on the Hub, though it may be gone by now.
            found = {name: made.get("inputs", {}).get(name, name) == name and pins.is_on_hub(name), **found}
    return found


def _results(directory: Path, source: Path, told: dict) -> tuple[list[dict], Path | None]:
    """(what an evaluation found of this model and its ancestors, oldest first; the rows of that evaluation).

    Only what was measured of the files that lie there now counts: a directory may have been trained anew since.
    """
    own = list(dict.fromkeys([str(source), str(directory)]))
    commits = {p["name"]: p["commit"] for made in _records(told) for p in made.get("pins", ())}
    for path in _evaluations(directory, source):
        found = [r for r in _read(path, list) or [] if isinstance(r, dict) and {"fingerprint", "dataset"} <= r.keys()]
        results = [r for r in found if _is_current(r, commits)]
        if any(_same(r["checkpoint"], name) for r in results for name in own):
            in_line = [next((r for r in results if _same(r["checkpoint"], n)), None) for n in (*ancestors(told), *own)]
            return [r for r in in_line if r is not None], path.with_name("rows.jsonl")
    return [], None


def _evaluations(directory: Path, source: Path) -> Iterator[Path]:
    """Every results.json in the directories around, the nearest first."""
    folders = [*directory.absolute().parents[:2], *source.absolute().parents[:2]]
    around = (path for folder in dict.fromkeys(folders) for path in (folder, *sorted(folder.glob("*/"))))
    yield from (path / "results.json" for path in (directory, *around) if (path / "results.json").is_file())


def _read(path: Path, kind: type):
    """What is in a JSON file of that kind; None where there is none, or somebody else's."""
    try:
        content = checkpoint.read_json(path) if path.is_file() else None
    except ValueError:
        return None
    return content if isinstance(content, kind) else None


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether two names mean one directory or, whatever the revision, one repository."""
    if Path(one).exists() or Path(other).exists():
        return Path(one).resolve() == Path(other).resolve()
    return pins.split(str(one))[0] == pins.split(str(other))[0]


def _is_current(result: dict, commits: dict[str, str]) -> bool:
    """Whether it was measured of what lies there now; of a model on the Hub, of the commit that the run began with."""
    name = result["checkpoint"]
    if checkpoint.is_local(name):
        return Path(name).is_dir() and result["fingerprint"] == checkpoint.fingerprint(name)
    repository, commit = pins.split(result["fingerprint"])
    return commits.get(repository, commit) == commit


# Front matter, as https://huggingface.co/docs/hub/model-cards has it.


def _front_matter(directory: Path, told: dict) -> str:
    from huggingface_hub import ModelCardData

    is_adapter = (directory / "adapter_config.json").is_file()
    data = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qwen-suite", "trl", told["stage"]],
        "base_model": _base_on_hub(told, is_adapter),
        "base_model_relation": None,
        "datasets": _data_on_hub(told) or None,
        "license": _license(told),
    }
    if data["base_model"]:
        data["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if told["stage"] == "tokenizer":
        data["pipeline_tag"] = None
    return f"---\n{ModelCardData(**data).to_yaml()}\n---"


def _base_on_hub(told: dict, is_adapter: bool) -> str | None:
    """The model on the Hub that this one goes back to; of an adapter, the one that it needs."""
    line = [*ancestors(told).items()][-1:] if is_adapter else [*ancestors(told).items()][:1]
    return next((name for name, on_hub in line if on_hub), None)


def _data_on_hub(told: dict) -> list[str]:
    """Data sets on the Hub: those that were read from there, and those that `suite prepare` read from there."""
    names = [p["name"] for p in told.get("pins", []) if p["kind"] == "dataset"]
    for name in told["inputs"]:
        prepared = _prepared(name)
        if prepared and (read := prepared.get("source")):
            names.append(read["name"])
    return list(dict.fromkeys(names))


def _prepared(name: str) -> dict | None:
    found = _read(Path(name) / "prepare.json", dict) or {}
    return found if {"settings", "splits"} <= found.keys() else None


def _license(told: dict) -> str | None:
    """That of the model it was made from, where a card beside that one states it."""
    import yaml
    from huggingface_hub import metadata_load

    for name in reversed(ancestors(told)):
        if (Path(name) / NAME).is_file():
            try:
                return (metadata_load(Path(name) / NAME) or {}).get("license")
            except (ValueError, yaml.YAMLError):  # no front matter that can be read
                return None
    return None


# The text, a paragraph or a section at a time.


def _parts(directory: Path, source: Path, told: dict, results: list[dict], rows: Path | None) -> Iterator[str]:
    yield f"# {directory.absolute().name}"
    yield _what_it_is(directory, source, told)
    yield "## What it was made from"
    yield record.markdown_table(*_inputs(told), numbers=False)
    yield "## The run"
    yield record.markdown_table(["", ""], _facts(told), numbers=False)
    yield f"<details><summary>Config</summary>\n\n```yaml\n{config_yaml(told)}```\n\n</details>"
    if told["stage"] != "tokenizer":
        yield "## Curves"
        yield f"![What was logged, by step]({CURVES})" if (directory / CURVES).is_file() else "None are drawn yet."
        yield "## Before and after"
        yield from _measured(directory, told, results)
        yield "## Completions"
        yield from _completions(source, results, rows)
    yield "## To repeat it"
    yield from _repeat(told)


def _what_it_is(directory: Path, source: Path, told: dict) -> str:
    line = [*ancestors(told)]
    start = f"made from {_named(told, line[-1])}" if line else "made from nothing"
    kind = "A LoRA adapter" if (directory / "adapter_config.json").is_file() else "A model"
    if told["stage"] == "tokenizer":
        kind, start = "A tokenizer", "learned from text"
    made = f"{kind} {start} by `suite {told['stage']}`"
    if "step" in told:
        return f"{made}, as it stood at step {told['step']:,}, after {_time(told['spent'])}."
    if not told.get("finished"):
        return f"{made}. **The run is not finished**: this is what it left so far."
    steps = f"{told['steps']:,} steps" if "steps" in told else "one pass"
    return f"{made}: {steps} in {_time(told['seconds'])}."


def _named(told: dict, name: str) -> str:
    pinned = next((p for p in told.get("pins", []) if p["name"] == name), None)
    if pinned:
        return f"[{name}](https://huggingface.co/{name}) at `{pinned['commit'][:12]}`"
    on_hub = ancestors(told)[name]
    return f"[{name}](https://huggingface.co/{name})" if on_hub else f"`{shown(name)}`"


def _inputs(told: dict) -> tuple[list[str], list[list[str]]]:
    """One row for each model and data set that the run read."""
    models = {told["config"].get(key): kind for key, kind in _KINDS.items()}
    models |= dict.fromkeys(told["config"].get("reward_funcs", ()), "reward model")
    rows = []
    for name, mark in told["inputs"].items():
        what, prepared = models.get(name, "data"), _prepared(name)
        name = pins.split(name)[0]
        pinned = [f"{p['revision']} = `{p['commit']}`" for p in told.get("pins", []) if p["name"] == name]
        mark = ", ".join(pinned) or f"fingerprint `{mark}`"
        rows.append([what, f"`{shown(name)}`", mark, _counts(prepared) if prepared else ""])
    counted = [f"{'not counted (a stream)' if n is None else f'{n:,}'} {s}" for s, n in told.get("rows", {}).items()]
    if counted:
        rows.append(["rows read", "", "", ", ".join(counted)])
    return ["", "name", "which one", "rows"], rows


def _counts(prepared: dict) -> str:
    """Rows kept of those read, a split at a time."""
    return ", ".join(f"{split}: {n['rows']:,} kept of {n['read']:,}" for split, n in prepared["splits"].items())


def _facts(told: dict) -> list[list[str]]:
    known = told.get("facts", {})
    seeds = {name: seed for name, seed in known.get("seeds", {}).items() if seed is not None}
    size = known.get("parameters")
    rows = [
        ["stage", f"`suite {told['stage']}`"],
        ["begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(told["started"])) if "started" in told else "-"],
        ["time", _time(told["seconds"]) if told.get("finished") else "-"],
        ["steps", f"{told['steps']:,}" if "steps" in told else "-"],
        ["seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items()) or "-"],
        ["parameters", f"{size['all']:,}, of which {size['trained']:,} were trained" if size else "-"],
        ["hardware", known.get("hardware", "-")],
        ["processes", f"{told['processes']}" + (f" ({known['engine']})" if told["processes"] > 1 and known else "")],
        ["versions", ", ".join(f"{package} {number}" for package, number in _versions(told).items())],
    ]
    return [[name, value] for name, value in rows if value != "-"]


def _versions(told: dict) -> dict[str, str]:
    python = told.get("facts", {}).get("python")
    return {**({"python": python} if python else {}), **told.get("versions", {})}


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{seconds:.0f} s"


def _measured(directory: Path, told: dict, results: list[dict]) -> Iterator[str]:
    line = [*ancestors(told)]
    here = shown(directory)
    there = shown(directory.absolute().parent)
    both = " ".join([*(shown(name) for name in line[-1:]), here])
    data = next((shown(name) for name in told["inputs"] if _prepared(name)), "DATA")
    command = f"suite evaluate --checkpoints {both} --dataset_name {data} --output_dir {there}"
    if not results:
        yield (
            "Not measured yet: no `results.json` beside this directory is of the model as it lies here.\n\n"
            f"```bash\n{command}\nsuite report {here}\n```"
        )
        return
    yield record.markdown_table(*record.before_after(results))
    how = f"On the test split of `{shown(results[-1]['dataset'])}`. In brackets: 95 % intervals."
    if "accuracy" in results[-1]["metrics"]:
        how += " Accuracy is the reward that trains; by greedy decoding, but for sampled and pass@k."
    if len(results) == 1:
        how += f" What was before is not in that evaluation; `{command}` measures both."
    yield how
    if (directory / BEFORE_AFTER).is_file():
        yield f"![Before and after]({BEFORE_AFTER})"


def _completions(source: Path, results: list[dict], rows: Path | None) -> Iterator[str]:
    """Three, of the evaluation, beside what was said before; or, where there is none, of what GRPO logged last."""
    samples = record.sample_completions(rows, 3, [r["checkpoint"] for r in results[-2:]]) if rows else []
    for prompt, solution, group in samples:
        yield f"**{_inline(prompt)}** (gold: {_inline(str(solution))})"
        for row in group:
            verdict = {1: "right", None: "not judged"}.get(row["accuracy"], "wrong")
            yield f"{row['stage']}, {verdict}:\n\n{_fenced(row['completion'])}"
    if samples:
        return
    logged = sorted((source / "completions").glob("completions_*.parquet"))
    if logged:
        yield from _logged(logged[-1])
    else:
        yield "None to show: there is no evaluation of this model, and no run of GRPO that logged (`log_completions`)."


def _logged(path: Path) -> Iterator[str]:
    from pyarrow.parquet import read_table

    from suite.columns import text_of

    table = read_table(path).slice(0, 3).to_pylist()
    for row in table:
        texts = [text_of(row[key]) if isinstance(row[key], list) else row[key] for key in ("prompt", "completion")]
        own = [f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float) and k != "advantage"]
        yield f"**{_inline(texts[0])}** (step {row['step']}: {', '.join(own)})\n\n{_fenced(texts[1])}"


def _inline(text: str, limit: int = 300) -> str:
    """Text on one line, in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else f"{line[:limit]} ..."
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", line)


def _fenced(text: str, limit: int = 2000) -> str:
    """Text as it is, in a fence longer than any in it."""
    text = text if len(text) <= limit else f"{text[:limit]}\n... ({len(text) - limit:,} more characters)"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _repeat(told: dict) -> Iterator[str]:
    """The files to write and the commands to run, with every name on the Hub at its commit."""
    for name in told["inputs"]:
        prepared = _prepared(name)
        if prepared:
            keys = {**prepared["settings"], "output_dir": shown(name)}
            if read := prepared.get("source"):
                keys["source"] = f"{read['name']}@{read['commit']}"
            yield f"The data, `suite prepare --config prepare.yaml` with:\n\n```yaml\n{_yaml(keys)}```"
    launch = ""
    if told["processes"] > 1:
        launch = f" --launch accelerate_configs/{told.get('facts', {}).get('engine', 'ddp')}.yaml"
    yield (
        "The config above, saved as `repeat.yaml`"
        + (f", on {told['processes']} processes:" if launch else ":")
        + "\n\n"
        f"```bash\nsuite {told['stage']} --config repeat.yaml --output_dir runs/repeat{launch}\n```"
    )


def config_yaml(told: dict) -> str:
    """The config of a run as it was written, with a commit in the place of each revision."""
    commits = {(p["name"], p["revision"]): p["commit"] for p in told.get("pins", [])}
    keys = dict(told["config"])
    for key, (_, revision_key) in pins.KEYS.items():
        if key not in keys or not pins.is_on_hub(keys[key]):
            continue
        name, revision = pins.split(keys[key])
        commit = commits.get((name, (keys.get(revision_key) if revision_key else revision) or "main"))
        if commit and revision_key:
            keys[revision_key] = commit
        elif commit:
            keys[key] = f"{name}@{commit}"
    if keys.get("datasets"):
        keys["datasets"] = [_pinned_part(part, commits) for part in keys["datasets"]]
    return _yaml(keys)


def _pinned_part(part: dict, commits: dict) -> dict:
    """One of the `datasets` of a mixture, without the keys that nobody has set."""
    name, revision = pins.split(part["path"])
    commit = commits.get((name, revision or "main"))
    path = {"path": f"{name}@{commit}"} if commit else {}
    return {key: value for key, value in {**part, **path}.items() if value is not None}


def _yaml(keys: dict) -> str:
    """Keys as a config has them, with a path of this machine cut to its end."""
    import yaml

    text = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=100)
    return _PATH.sub(lambda found: shown(found.group()), text)


# What does not belong on a page that others read.


def shown(path: str | Path) -> str:
    """A path as it may be shown: from the working directory, or only its end where it lies elsewhere."""
    path = Path(path)
    if not path.is_absolute():
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return f".../{'/'.join(path.parts[1:][-2:])}"


def without_secrets(text: str) -> str:
    """A text without the Hub's token, what looks like one, and any value of a variable that is named as a secret."""
    from huggingface_hub import get_token

    known = [get_token(), *(value for name, value in os.environ.items() if _NAMES_A_SECRET.search(name))]
    for secret in known:
        if secret and len(secret) >= 8:
            text = text.replace(secret, "[secret]")
    return _SECRET.sub("[secret]", text)
