"""What is known of a model by what lies on disk: its ancestors, the data it was made from, and what was measured of
them."""

from collections.abc import Iterator
from pathlib import Path

from suite import checkpoint, pins


def _records(told: dict) -> Iterator[dict]:
    """The record of a run, and of each that it goes back to and that still lies here."""
    seen: set[str] = set()
    while told:
        yield told
        name = told.get("config", {}).get("model_name_or_path")
        told = {} if not name or name in seen else read(Path(name) / "run.json", dict) or {}
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


def prepared(name: str) -> dict | None:
    """What `suite prepare` has noted of a data directory; None where it has not written it."""
    found = read(Path(name) / "prepare.json", dict) or {}
    return found if {"settings", "splits"} <= found.keys() else None


def read(path: Path, kind: type):
    """What is in a JSON file of that kind; None where there is none, or somebody else's."""
    try:
        content = checkpoint.read_json(path) if path.is_file() else None
    except ValueError:
        return None
    return content if isinstance(content, kind) else None


def measured(directory: Path, source: Path, told: dict) -> tuple[list[dict], Path | None]:
    """(what an evaluation found of this model and its ancestors, oldest first; the rows of that evaluation).

    Only what was measured of the files that lie there now counts: a directory may have been trained anew since.
    """
    own = list(dict.fromkeys([str(source), str(directory)]))
    commits = {p["name"]: p["commit"] for made in _records(told) for p in made.get("pins", ())}
    for path in _evaluations(directory, source):
        found = [r for r in read(path, list) or [] if isinstance(r, dict) and {"fingerprint", "dataset"} <= r.keys()]
        results = [r for r in found if _is_current(r, commits)]
        mine = next((r for r in results for name in own if _same(r["checkpoint"], name)), None)
        if mine is not None:  # what was asked other rows, or in another way, is no before
            alike = [r for r in results if r.get("conditions") == mine.get("conditions")]
            in_line = [next((r for r in alike if _same(r["checkpoint"], n)), None) for n in (*ancestors(told), *own)]
            return [r for r in in_line if r is not None], path.with_name("rows.jsonl")
    return [], None


def _evaluations(directory: Path, source: Path) -> Iterator[Path]:
    """Every results.json in the directories around, the nearest first."""
    folders = [*directory.absolute().parents[:2], *source.absolute().parents[:2]]
    around = (path for folder in dict.fromkeys(folders) for path in (folder, *sorted(folder.glob("*/"))))
    yield from (path / "results.json" for path in (directory, *around) if (path / "results.json").is_file())


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
