"""A raw data set becomes data/<name>/{train,test}.parquet: columns checked, rows cleaned, every gold answer proven.

suite prepare gsm8k
suite prepare arithmetic --digits 2 --size 5000
suite prepare files --source chats.json --output_dir data/chats
suite prepare numina_math_r1_cot --tokenizer_name_or_path Qwen/Qwen2.5-1.5B --max_length 8192

`source` may be a Hub repository (its commit is noted, and the tokenizer's; `owner/name@revision` is a certain state of
it), a file (.parquet, or .jsonl, .json or .txt, plain, .gz or .zst) or a directory of files. Rows that are empty,
there twice, unclosed in their thinking or known from the test set are left out, as lines that cannot be read are, and a
table says how many of each. A gold answer that does not prove itself is an error until `drop_unproven` allows it.

A benchmark, which is there to be asked, may have no training rows; then there is no train.parquet.

The directory appears whole, in place of an older one. What was killed reads its source from the beginning again, and
does not again count the tokens or prove the golds that it has counted and proven.
"""

import contextlib
import hashlib
import inspect
import json
import sys
import typing
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path

from suite import args, checkpoint, cleaning, columns, data, ending, pins, reasoning, rewards, whole
from suite.data import reading
from suite.registry import pick
from suite.values import knob_class

SPLITS = ("test", "train")  # the test set first: the training set may not repeat it
# Of a directory: what makes a tokenizer and its chat template. The weights of a model may lie beside it.
TOKENIZER = ("tokenizer*", "vocab*", "merges*", "*.model", "special_tokens_map.json", "added_tokens.json",
             "chat_template*", "additional_chat_templates/*")  # fmt: skip


@dataclass
class PrepareArguments:
    """What every data set understands; its own knobs come on top (`suite prepare NAME --help`)."""

    name: str = field(metadata={"help": "Which data set: see `suite list data`."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the parquet files go; data/NAME."})
    system_prompt: str = field(
        default=reasoning.SYSTEM_PROMPT,
        metadata={"help": "First message of every conversation that has no such message. 'none' writes none."},
    )
    max_rows: int | None = field(default=None, metadata={"help": "Keep only the first N training rows."})
    drop_empty: bool = field(default=True, metadata={"help": "Leave out rows with an empty turn or text."})
    drop_duplicates: bool = field(
        default=True, metadata={"help": "Leave out rows that repeat an earlier one in every column."}
    )
    drop_unclosed_think: bool = field(
        default=True, metadata={"help": "Leave out rows whose answer opens <think> and does not close it."}
    )
    drop_wrong_completions: bool = field(
        default=False, metadata={"help": "Leave out rows whose completion does not earn accuracy 1 by its solution."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "The tokenizer that counts tokens for the two limits below."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Leave out rows with more tokens than this."})
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "Leave out rows with more tokens than this in their prompt."}
    )
    overlap_ngram: int = field(
        default=13,
        metadata={
            "help": "Leave out training rows that share this many consecutive words with a test question; 0: off."
        },
    )
    drop_unproven: int = field(
        default=0, metadata={"help": "How many rows may be left out whose gold answer does not earn accuracy 1."}
    )

    def __post_init__(self):
        least = {"max_rows": 1, "max_length": 1, "max_prompt_tokens": 1, "overlap_ngram": 0, "drop_unproven": 0}
        for name, value in asdict(self).items():
            if name in least and value is not None and value < least[name]:
                raise ValueError(f"{name}: {value} must be at least {least[name]}.")
        if (self.max_length or self.max_prompt_tokens) and self.tokenizer_name_or_path is None:
            raise ValueError("max_length and max_prompt_tokens count tokens. Whose? Set tokenizer_name_or_path.")


def arguments(name: str) -> tuple[type, ...]:
    """Our own keys, with the defaults that the data set has for them, and its knobs."""
    load, own = data.load(name), data.defaults(name)
    hints, there = typing.get_type_hints(PrepareArguments), {f.name: f for f in fields(PrepareArguments)}
    changed = [
        (pick("key of prepare", key, there), hints[key], field(default=value, metadata=there[key].metadata))
        for key, value in own.items()
    ]
    ours = make_dataclass("PrepareArguments", changed, bases=(PrepareArguments,))
    return ours, knob_class(f"{name} knobs", load, data.told(name))


@ending.orderly_end()
def main(argv=None) -> None:
    path, words = args.take_config(list(sys.argv[1:] if argv is None else argv))
    name = args.read_yaml(path).get("name") if path else None
    if words and not words[0].startswith("--"):
        name = words[0]
        words = ["--name", *words]
    if "--name" in words:
        name = next(iter(words[words.index("--name") + 1 :]), None)
    if name is None:
        raise ValueError(f"Which data set? `suite prepare NAME`. There are: {', '.join(data.names())}.")
    words = [*(["--config", path] if path else []), *words]
    prepare, turned, _ = args.parse(arguments(name), words, needs_config=False)
    write(prepare, data.load(name), asdict(turned))


def write(prepare: PrepareArguments, load, knobs: dict) -> Path:
    """Write both splits and prepare.json, whole or not at all, and return their directory.

    Raises `ValueError` for rows of no known shape, a split without rows, or a gold answer that does not prove itself.
    """
    target = Path(prepare.output_dir or f"data/{prepare.name}")
    whole.restore(target)
    settings = {key: value for key, value in asdict(prepare).items() if key != "output_dir"} | knobs
    made_from = [settings, _fingerprint(knobs), data.code(inspect.getmodule(load), cleaning)]
    identity = whole.digest([*made_from, *_counted_here(prepare)])
    if _identity(target) == identity and all((target / f"{split}.parquet").is_file() for split in _splits_in(target)):
        whole.tidy(target)
        print(f"{target} holds these very rows already; reusing them.")
        return target
    if target.exists() and _identity(target) is None and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} holds something that `suite prepare` did not write. Choose another output_dir.")
    read, tokenizer = _pinned(knobs), _tokenizer(prepare, whole.journal_of(target))
    at = {**knobs, "source": f"{read['name']}@{read['commit']}"} if read else knobs
    with whole.Journal(whole.journal_of(target), target, _decided_by(prepare, tokenizer)) as journal:
        if journal.lines:
            print(f"Going on from an earlier attempt, which has checked {len(journal.lines)} batches.", flush=True)
        with whole.directory(target) as partial:
            counts = _write_splits(prepare, lambda split: load(split, **at), tokenizer, partial, journal)
            told = {split: counts[split].as_dict() for split in reversed(counts)}
            record = {"identity": identity, "settings": settings, "splits": told, **({"source": read} if read else {})}
            if pins.is_on_hub(tokenizer):
                record["tokenizer"] = _noted(prepare.tokenizer_name_or_path, pins.split(tokenizer)[1])
            checkpoint.write_json(partial / "prepare.json", record)
        journal.remove()
    print(_table(str(target), counts))
    return target


def _tokenizer(prepare: PrepareArguments, journal: Path) -> str | None:
    """Whose tokens are counted, if any are; of a model on the Hub as of one commit: the first attempt's, or today's."""
    if not _counts_tokens(prepare):
        return None
    head = next(iter(whole.read_lines(journal)), {})
    before, known = head.get("tokenizer", (None, None))
    name = prepare.tokenizer_name_or_path
    return pins.at_commit(name, known if before == name else None)


def _decided_by(prepare: PrepareArguments, tokenizer: str | None) -> dict:
    """What the verdicts of the slow checks depend on, beside the rows."""
    counted = _which_tokenizer(tokenizer) if tokenizer else None
    return {
        "tokens": [prepare.max_length, prepare.max_prompt_tokens, counted],
        "tokenizer": [prepare.tokenizer_name_or_path, tokenizer],
        "rewards": rewards.version("accuracy", rewards.load("accuracy")),
    }


def _remembered(name: str, check: cleaning.Check, journal: whole.Journal) -> cleaning.Check:
    """A slow check, not made again of a batch of rows of which an earlier attempt has made it.

    Reading the rows again costs little, so an attempt that was killed is gone on with from the beginning of its source:
    the cheap checks, some of which remember rows, see all of them.
    """
    known = dict(journal.lines)

    def look(rows: list[dict]) -> list[cleaning.Reason | None]:
        key = whole.digest([name, rows])
        if key in known:
            reasons = {at: cleaning.Reason(*reason) for at, reason in known[key]}
            return [reasons.get(at) for at in range(len(rows))]
        found = check(rows)
        journal.add([key, [[at, reason] for at, reason in enumerate(found) if reason]])
        return found

    return look


def _write_splits(
    prepare: PrepareArguments, load, tokenizer: str | None, directory: Path, journal: whole.Journal
) -> dict[str, cleaning.Count]:
    """The parquet file of each split, a batch at a time; split -> what became of its rows, where it has any."""
    counts = {split: cleaning.Count() for split in SPLITS}
    limits = []
    if tokenizer:
        too_long = cleaning.too_long(tokenizer, prepare.max_length, prepare.max_prompt_tokens)
        limits = [_remembered("too long", too_long, journal)]
    wrong = _remembered("wrong", cleaning.wrong_completion, journal)
    unproven = _remembered("unproven", cleaning.unproven, journal)
    overlap = cleaning.Overlap(prepare.overlap_ngram)
    for split, count in list(counts.items()):
        where, training = f"{prepare.name} ({split})", split == "train"
        checks = [
            *([cleaning.empty] if prepare.drop_empty else []),
            *([cleaning.duplicates()] if prepare.drop_duplicates else []),
            *([cleaning.unclosed_think] if prepare.drop_unclosed_think else []),
            *limits,
            *([overlap.check] if prepare.overlap_ngram and training else []),
            *([wrong] if prepare.drop_wrong_completions else []),
            unproven,
        ]
        rows = _shaped((_with_system(row, prepare.system_prompt) for row in load(split)), where)
        batches = cleaning.sift(_progress(rows, where), checks, count, prepare.max_rows if training else None)
        with _Parquet(directory / f"{split}.parquet") as file:
            for batch in batches:
                file.write(batch)
                if prepare.overlap_ngram and not training:
                    overlap.add(batch)
            if training and not count.read and data.is_benchmark(prepare.name):
                del counts[split]
                continue
            _check_count(where, counts, split, prepare.drop_unproven)
    return counts


def _check_count(where: str, counts: dict[str, cleaning.Count], split: str, may_drop: int) -> None:
    """Raises `ValueError` where too many golds are unproven so far, or a split has no rows."""
    count = counts[split]
    unproven = {name: sum(c.dropped[name] for c in counts.values()) for name in cleaning.UNPROVEN}
    here = sum(count.dropped[name] for name in cleaning.UNPROVEN)
    if sum(unproven.values()) > may_drop:
        first = next(count.first[name] for name in cleaning.UNPROVEN if name in count.first)
        raise ValueError(
            f"{where}: {here} of {count.kept + here} gold answers could not be verified: "
            f"{count.dropped[cleaning.UNPROVEN[0]]} are unreadable, {count.dropped[cleaning.UNPROVEN[1]]} do not earn "
            f"1. The first is {first}. Fix the rows, or allow it: --drop_unproven {sum(unproven.values())}."
        )
    if not count.read:
        raise ValueError(f"{where} has no rows.")
    if not count.kept:
        why = "; ".join(f"{n} {name} (first: {count.first[name]})" for name, n in count.dropped.items())
        raise ValueError(f"{where} has no rows left of {count.read}: {why}.")


def _fingerprint(knobs: dict) -> str:
    """A local source may change under the same name."""
    found = reading.files(str(knobs["source"])) if knobs.get("source") else {}
    paths = [path for part in found.values() for path in part]
    return ",".join(f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths)


def _counted_here(prepare: PrepareArguments) -> list[str]:
    """A local tokenizer may change under the same name, too; of one on the Hub prepare.json has the commit."""
    name = prepare.tokenizer_name_or_path
    return [_which_tokenizer(name)] if _counts_tokens(prepare) and checkpoint.is_local(name) else []


def _counts_tokens(prepare: PrepareArguments) -> bool:
    return bool(prepare.max_length or prepare.max_prompt_tokens)


def _which_tokenizer(name: str) -> str:
    """By what the files of a local one say, to the last byte: one merge more may be in the middle of a large file."""
    if not checkpoint.is_local(name):
        return name
    files = {path for pattern in TOKENIZER for path in Path(name).glob(pattern) if path.is_file()}
    return whole.digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(files)])


def _pinned(knobs: dict) -> dict | None:
    """{name, revision, commit} of a source on the Hub; None where the rows come from here."""
    if not knobs.get("source") or not reading.is_on_hub(knobs["source"]):
        return None
    name, revision = pins.split(knobs["source"])
    return _noted(knobs["source"], pins.commit_of(name, "dataset", revision))


def _noted(asked: str, commit: str) -> dict:
    name, revision = pins.split(asked)
    return {"name": name, "revision": revision or "main", "commit": commit}


def _identity(target: Path) -> str | None:
    record = target / "prepare.json"
    try:
        return json.loads(record.read_text(encoding="utf-8"))["identity"] if record.is_file() else None
    except (ValueError, KeyError, TypeError):  # somebody else's file of that name
        return None


def _splits_in(target: Path) -> list[str]:
    """The splits that prepare.json says are there: a benchmark may have one."""
    return list(checkpoint.read_json(target / "prepare.json")["splits"])


def _with_system(row, system_prompt: str):
    """The row with the system prompt as first message, where its prompt or chat is a conversation without one."""
    if system_prompt == "none" or isinstance(row, reading.Dropped):
        return row
    name = next((n for n in ("prompt", "messages") if isinstance(row.get(n), list) and row[n]), None)
    if name is None or row[name][0]["role"] == "system":
        return row
    return {**row, name: [{"role": "system", "content": system_prompt}, *row[name]]}


def _shaped(rows: Iterable, where: str) -> Iterator:
    """The rows, all of which must have the columns of a shape in common, and more than a prompt where the first has."""
    shapes = list(columns.SHAPES)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, reading.Dropped):
            more = [shape for shape in shapes if shape != "prompt" and columns.shape_of(row.keys(), [shape])]
            shapes = more or [columns.check(row.keys(), shapes, f"{where}, row {number},")]
        yield row


def _progress(rows: Iterable, where: str) -> Iterator:
    """The rows, with a bar for those who wait longer than three seconds."""
    from tqdm import tqdm

    yield from tqdm(rows, desc=where, unit=" rows", delay=3, mininterval=1, disable=not sys.stderr.isatty())


class _Parquet:
    """A parquet file that is written a batch at a time, where a later batch may know more of the types than the first.

    A column that is all None in one batch has no type there, and one may be missing: so each batch is a file of its
    own until the end, when the types of all are known.
    """

    def __init__(self, path: Path):
        self.path, self.parts = path, []

    def __enter__(self):
        return self

    def write(self, rows: list[dict]) -> None:
        import pyarrow
        import pyarrow.parquet

        held = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            with self._one_table(f"the column `{name}`"):
                held[name] = pyarrow.array([row.get(name) for row in rows])
            if pyarrow.types.is_struct(held[name].type) and not held[name].type.num_fields:  # {} in every row
                held[name] = pyarrow.nulls(len(rows))
        self.parts.append(self.path.with_name(f"{self.path.name}.{len(self.parts)}"))
        with self._one_table("a column"):
            pyarrow.parquet.write_table(pyarrow.table(held), self.parts[-1])

    @contextlib.contextmanager
    def _one_table(self, what: str) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(
                f"{self.path.stem}: {what} holds what cannot be in one table: {error}. A column has one type in all "
                "rows: write it so, or leave it out of the source."
            ) from None

    def __exit__(self, kind, error, trace):
        if kind is not None or not self.parts:
            return
        import pyarrow
        import pyarrow.parquet

        schemas = [pyarrow.parquet.read_schema(part) for part in self.parts]
        with self._one_table("a column"):
            schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        with pyarrow.parquet.ParquetWriter(self.path, schema) as file:
            for part in self.parts:
                file.write_table(pyarrow.parquet.read_table(part, schema=schema))
                part.unlink()


def _table(title: str, counts: dict[str, cleaning.Count]) -> str:
    """Rows read, left out by reason and kept, a column a split; and the first row that went for each reason."""
    splits = tuple(reversed(counts))
    reasons = sorted({name for count in counts.values() for name in count.dropped})
    lines = [(title, splits), ("read", [counts[s].read for s in splits])]
    lines += [(f"  {name}", [-counts[s].dropped[name] for s in splits]) for name in reasons]
    lines.append(("kept", [counts[s].kept for s in splits]))
    width = max(len(name) for name, _ in lines)
    told = [
        f"{name:<{width}}" + "".join(f"{cell:>10,}" if isinstance(cell, int) else f"{cell:>10}" for cell in cells)
        for name, cells in lines
    ]
    for split in splits:
        told += [f"first {name} in {split}: {where}" for name, where in sorted(counts[split].first.items())]
    return "\n".join(told)
