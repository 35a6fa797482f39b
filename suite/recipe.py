"""What it takes to make a run again: the config, the data's settings and the command, each name on the Hub at its
commit."""

from collections.abc import Iterator

from suite import lineage, pins, privacy


def paragraphs(told: dict) -> Iterator[str]:
    """The files to write and the commands to run, with every name on the Hub at its commit."""
    for name in told["inputs"]:
        prepared = lineage.prepared(name)
        if prepared:
            keys = {**prepared["settings"], "output_dir": privacy.shown(name)}
            if read := prepared.get("source"):
                keys["source"] = f"{read['name']}@{read['commit']}"
            yield f"The data, `suite prepare --config prepare.yaml` with:\n\n```yaml\n{_yaml(keys)}```"
    launch = ""
    if told["processes"] > 1:
        engine = told.get("facts", {}).get("engine", "ddp")
        launch = f" --launch accelerate_configs/{engine}.yaml --num_processes {told['processes']}"
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
    return privacy.without_paths(text)
