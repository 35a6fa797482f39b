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

from suite import checkpoint, lineage, pins, plots, privacy, recipe, samples, tables, whole

NAME = "README.md"
CURVES, BEFORE_AFTER = "curves.png", "before-after.png"
_MARK = "<!-- Written by qwen-suite from the files of the run in '{source}', and written anew by `suite report`. -->"
_MARKED = re.compile(re.escape(_MARK).replace(re.escape("{source}"), "(?P<source>.*)"))
_KINDS = {
    "model_name_or_path": "model",
    "teacher_model_name_or_path": "teacher",
    "tokenizer_name_or_path": "tokenizer",
    "compare_with": "tokenizer",
}
# A line of the cards that TRL and PEFT write on their own.
_THEIRS = ("It has been trained using [TRL]", "<!-- Provide a quick summary of what the model is/does. -->")


def write(directory: str | Path, source: str | Path | None = None, *, pictures: bool = True) -> Path | None:
    """Write the card of the model in a directory and return its path; None where no record of a run is there, and where
    nothing can be written: others' models, too, are measured and told of.

    Of an exported directory `source` is the run, or the checkpoint, that it was made from; once written, its card
    knows. A README.md that somebody else has written stays as it is.
    """
    directory = Path(directory)
    there = (directory / NAME).read_text(encoding="utf-8") if (directory / NAME).is_file() else None
    marked = _MARKED.search(there or "")
    if there is not None and marked is None and not any(line in there for line in _THEIRS):
        return None
    source = Path(source) if source is not None else directory / (marked["source"] if marked else "")
    told = lineage.read(source / "run.json", dict) or {}
    if not {"stage", "config", "inputs", "processes"} <= told.keys():
        return None
    if not os.access(directory, os.W_OK):
        print(f"{directory / NAME} stays as it is, for nothing can be written there.")
        return None
    results, rows = lineage.measured(directory, source, told)
    if pictures:
        _draw(directory, _history(source, told), results)
    text = "\n\n".join(_parts(directory, source, told, results, rows))
    mark = _MARK.format(source=os.path.relpath(source, directory))
    with whole.file(directory / NAME) as partial:
        page = f"{_front_matter(directory, told)}\n{mark}\n\n{text}\n"
        partial.write_text(privacy.without_secrets(page), encoding="utf-8")
    return directory / NAME


def _history(source: Path, told: dict) -> list[dict]:
    """What was logged: of the whole run, up to this checkpoint, or as far as the run has come."""
    is_whole = told.get("finished") or "step" in told
    states = [source, *reversed(checkpoint.steps(source))] if is_whole else [*reversed(checkpoint.steps(source))]
    there = next((d / "trainer_state.json" for d in states if (d / "trainer_state.json").is_file()), None)
    return checkpoint.read_json(there)["log_history"] if there else []


def _draw(directory: Path, history: list[dict], results: list[dict]) -> None:
    """The pictures; one of an earlier card, of which nothing is known any more, goes."""
    found = plots.curves(history, plots.has_rewards(history))
    judged = [r for r in results if "accuracy" in r["metrics"]]
    for name, known in ((CURVES, found), (BEFORE_AFTER, judged)):
        if not known:
            (directory / name).unlink(missing_ok=True)
    if found:
        plots.drawn_once(plots.draw_all_curves, found, directory / CURVES)
    if judged:
        plots.drawn_once(plots.draw_results, judged, directory / BEFORE_AFTER)


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
    line = [*lineage.ancestors(told).items()][-1:] if is_adapter else [*lineage.ancestors(told).items()][:1]
    return next((name for name, on_hub in line if on_hub), None)


def _data_on_hub(told: dict) -> list[str]:
    """Data sets on the Hub: those that were read from there, and those that `suite prepare` read from there."""
    names = [p["name"] for p in told.get("pins", []) if p["kind"] == "dataset"]
    for name in told["inputs"]:
        prepared = lineage.prepared(name)
        if prepared and (read := prepared.get("source")):
            names.append(read["name"])
    return list(dict.fromkeys(names))


def _license(told: dict) -> str | None:
    """That of the model it was made from, where a card beside that one states it."""
    import yaml
    from huggingface_hub import metadata_load

    for name in reversed(lineage.ancestors(told)):
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
    yield tables.markdown_table(*_inputs(told), numbers=False)
    yield "## The run"
    yield tables.markdown_table(["", ""], _facts(told), numbers=False)
    yield f"<details><summary>Config</summary>\n\n```yaml\n{recipe.config_yaml(told)}```\n\n</details>"
    if told["stage"] != "tokenizer":
        yield "## Curves"
        yield f"![What was logged, by step]({CURVES})" if (directory / CURVES).is_file() else "None are drawn yet."
        yield "## Before and after"
        yield from _measured(directory, told, results)
        yield "## Completions"
        yield from samples.in_markdown(source, results, rows)
    yield "## To repeat it"
    yield from recipe.paragraphs(told)


def _what_it_is(directory: Path, source: Path, told: dict) -> str:
    line = [*lineage.ancestors(told)]
    start = f"made from {_named(told, line[-1])}" if line else "made from nothing"
    kind = "A LoRA adapter" if (directory / "adapter_config.json").is_file() else "A model"
    if told["stage"] == "tokenizer":
        kind, start = "A tokenizer", "learned from text"
    made = f"{kind} {start} by `suite {told['stage']}`{_as_exported(directory, source)}"
    if "step" in told:
        return f"{made}, as it stood at step {told['step']:,}, after {_time(told['spent'])}."
    if not told.get("finished"):
        return f"{made}. **The run is not finished**: this is what it left so far."
    steps = f"{told['steps']:,} steps" if "steps" in told else "one pass"
    return f"{made}: {steps} in {_time(told['seconds'])}."


def _as_exported(directory: Path, source: Path) -> str:
    """What `suite export` has made of it, for it may be of another class, form or type than the run's own model."""
    if directory.resolve() == source.resolve():
        return ""
    config = lineage.read(directory / "config.json", dict) or {}
    experts = f" of {config['num_experts']} experts" if config.get("num_experts") else ""
    dtype = f", its weights in {config['dtype']}" if config.get("dtype") else ""
    return f" and exported as {config['model_type']}{experts}{dtype}" if "model_type" in config else ""


def _named(told: dict, name: str) -> str:
    pinned = next((p for p in told.get("pins", []) if p["name"] == name), None)
    if pinned:
        return f"[{name}](https://huggingface.co/{name}) at `{pinned['commit'][:12]}`"
    on_hub = lineage.ancestors(told)[name]
    return f"[{name}](https://huggingface.co/{name})" if on_hub else f"`{privacy.shown(name)}`"


def _inputs(told: dict) -> tuple[list[str], list[list[str]]]:
    """One row for each model and data set that the run read."""
    models = {told["config"].get(key): kind for key, kind in _KINDS.items()}
    models |= dict.fromkeys(told["config"].get("reward_funcs", ()), "reward model")
    rows = []
    for name, mark in told["inputs"].items():
        what, prepared = models.get(name, "data"), lineage.prepared(name)
        name = pins.split(name)[0]
        pinned = [f"{p['revision']} = `{p['commit']}`" for p in told.get("pins", []) if p["name"] == name]
        mark = ", ".join(pinned) or f"fingerprint `{mark}`"
        rows.append([what, f"`{privacy.shown(name)}`", mark, _counts(prepared) if prepared else ""])
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
    line = [*lineage.ancestors(told)]
    here = privacy.shown(directory)
    there = privacy.shown(directory.absolute().parent)
    both = " ".join([*(privacy.shown(name) for name in line[-1:]), here])
    data = next((privacy.shown(name) for name in told["inputs"] if lineage.prepared(name)), "DATA")
    command = f"suite evaluate --checkpoints {both} --dataset_name {data} --output_dir {there}"
    if not results:
        yield (
            "Not measured yet: no `results.json` beside this directory is of the model as it lies here.\n\n"
            f"```bash\n{command}\nsuite report {here}\n```"
        )
        return
    yield tables.markdown_table(*tables.before_after(results))
    how = f"On `{privacy.shown(results[-1]['dataset'])}`. In brackets: 95 % intervals."
    if "accuracy" in results[-1]["metrics"]:
        how += " Accuracy is the reward that trains; by greedy decoding, but for sampled and pass@k."
    if len(results) == 1:
        how += f" What was before is not in that evaluation; `{command}` measures both."
    yield how
    if (directory / BEFORE_AFTER).is_file():
        yield f"![Before and after]({BEFORE_AFTER})"
