"""The rows a run reads: prepared parquet, files as others publish them, a data set on the Hub, or TRL's mixture; their
shape is checked first."""

import glob
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from suite import checkpoint, columns, pins, yardstick
from suite.args import say
from suite.data import code, files, lines, reading
from suite.engine.positions import positions_of
from suite.rewards.wording import gold_answer

# How `datasets` knows the files of a split, where any is called so.
_CALLED_AS_SPLIT = re.compile(
    r"(?:^|[-._ 0-9])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)[-._ 0-9]"
)
LOOKED_AT = 200  # of the rows, to say what becomes of them
_GATHER = " `suite prepare files --source DIRECTORY --output_dir data/NAME` makes a part of it that can be read."
SQUARE = 8192  # tokens end to end, from which on their mask is worth a word: 0.2 GB in bf16


def names(script, mixture) -> list[str | None]:
    """The data directories, or names on the Hub, that a run's rows come from."""
    return [script.dataset_name, *(entry.path for entry in mixture.datasets or [])]


def rows(
    script,
    mixture,
    shapes: tuple[str, ...],
    *,
    with_test: bool = False,
    every_column: bool = False,
    beside_turns: bool = True,
    asked_with: dict | None = None,
):
    """(training rows, test rows or None) of `dataset_name` or of TRL's `datasets:` mixture, in one of `shapes`.

    Only the columns of that shape are kept, and what the chat template is given beside its turns, unless
    `beside_turns` is False; then nothing is said of it either. `prompt+solution` keeps all that a reward may want to
    read, and `every_column` all there are. With `asked_with`, `chat_template_kwargs` of the config, prompts are asked.
    Raises `ValueError` where there are no rows, or none of these shapes.
    """
    if mixture.datasets and script.dataset_name:
        raise ValueError("Both `datasets` and `dataset_name` are set; which one holds the rows? Remove the other.")
    wanted = [script.dataset_train_split] + ([script.dataset_test_split] if with_test else [])
    if mixture.datasets:
        where, (splits, shapes) = "`datasets`", _mixed(mixture, shapes)
    elif script.dataset_name:
        where, splits = script.dataset_name, _splits(script, wanted)
    else:
        raise ValueError("No rows: set `dataset_name` (data/NAME, or a data set on the Hub) or `datasets`.")
    found = []
    for name in wanted:
        if name not in splits:
            way = _way_to_test_rows(script) if with_test and name == script.dataset_test_split else ""
            raise ValueError(f"{where} has no split '{name}'. There are: {', '.join(splits)}.{way}")
        found.append(_shaped(splits[name], shapes, f"{where} ({name})", every_column, beside_turns, asked_with))
    return found[0], found[1] if with_test else None


def _way_to_test_rows(script) -> str:
    """For whoever has only training rows: TRL's mixture sets some of them aside, and of files `suite prepare` does."""
    where = script.dataset_name
    if where is None:
        return " Set `test_split_size`."
    if Path(where).exists() and not any(Path(where).glob("*.parquet")):
        return f" `suite prepare files --source {where} --output_dir data/NAME` divides it."
    return f" Set `datasets: [{{path: {where}}}]` in the place of `dataset_name` and `test_split_size`."


def read_on(rows, paths: list[str]) -> Iterator[dict]:
    """The rows of a mixture that streams. What breaks off behind the first ones is a `ValueError` that says where."""
    from pyarrow import ArrowException

    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except (OSError, RuntimeError, UnicodeDecodeError, ArrowException) as error:
        raise ValueError(
            f"`datasets`: behind row {number} a part cannot be read, of {', '.join(paths)}: {reading.cause(error)}."
            f"{_GATHER}"
        ) from error


def to_answer(answers, config, script, mixture, tokenizer) -> list[dict]:
    """The first test rows, as many as `eval_answers` says, of the run's own data set or of `eval_answers_dataset`.

    Raises `ValueError` where no evaluation would ask for them, and where they are not there or cannot be asked.
    """
    yardstick.check(config, answers.eval_answers)
    if not answers.eval_answers:
        return []
    if config.eval_strategy == "no":
        raise ValueError(
            f"eval_answers: {answers.eval_answers} rows are answered at every evaluation, and there is none. Set "
            "`eval_strategy: steps` and `eval_steps`."
        )
    if mixture.datasets and not answers.eval_answers_dataset:
        raise ValueError("eval_answers: which test rows, where `datasets` mixes several? Set `eval_answers_dataset`.")
    name = answers.eval_answers_dataset or script.dataset_name
    own = name == script.dataset_name
    there = replace(
        script,
        dataset_name=name,
        dataset_config=script.dataset_config if own else None,
        dataset_train_split=script.dataset_test_split if own else "test",
    )
    try:
        found, _ = rows(there, replace(mixture, datasets=[]), ("prompt+solution",))
    except ValueError as error:
        raise ValueError(f"eval_answers: {error} `eval_answers_dataset` may name another data set.") from None
    found = list(islice(found, answers.eval_answers))
    if not any(row.get("tests") or row.get("task") or gold_answer(row["solution"]) for row in found):
        raise ValueError(f"eval_answers: not one of the first {len(found)} solutions of {name} can be read.")
    template = tokenizer.chat_template or vars(config).get("chat_template_path")  # SFT has such a key
    if any(map(columns.is_conversational, found)) and not template:
        raise ValueError(
            f"eval_answers: the prompts of {name} are conversations, and the tokenizer has no chat template."
        )
    return found


def as_many(test_rows, answers: int):
    """The test rows of an evaluation that samples, as many as `eval_answers` says: a row costs more there than here."""
    return test_rows.take(answers) if answers and test_rows is not None else test_rows


def counts(train, test=None) -> dict[str, int | None]:
    """How many rows each split has, for the record of the run; of rows that stream nobody knows the number."""
    there = {"train": train, **({"test": test} if test is not None else {})}
    return {split: len(rows) if hasattr(rows, "__len__") else None for split, rows in there.items()}


def check_left_out(given, kept) -> None:
    """Say how many rows TRL has dropped because `max_length` leaves nothing of them to train; it drops them silently.

    Raises `ValueError` where that is all of them. Of rows that stream nobody knows the number.
    """
    if not hasattr(given, "__len__") or len(kept) == len(given):
        return
    told = f"{len(given) - len(kept)} of {len(given)} rows are left out: their prompt alone fills `max_length`."
    if len(kept) == 0:
        raise ValueError(f"{told} Raise it.")
    say(told)


def say_what_is_beyond(trainer) -> None:
    """Say of how many tokenized rows the end lies beyond the model's positions, as the first ones show: TRL trains it
    there without a word."""
    longest, positions = trainer.args.max_length, positions_of(trainer.model.config)
    if positions is None or (longest is not None and longest <= positions):
        return
    lengths = [_tokens(row) for row in islice(trainer.train_dataset, LOOKED_AT)]
    beyond = sum(length > positions for length in lengths)
    if beyond:
        say(
            f"warning: {beyond} of the first {len(lengths)} rows have more tokens than the {positions} positions of "
            "the model (`max_position_embeddings`), and are trained where no engine lets it answer. Set "
            f"`max_length: {positions}`, or take a model with more positions."
        )


def _tokens(row: dict) -> int:
    """Of a tokenized row: of the longest, where several are packed into it and each begins at position 0."""
    if "prompt_ids" in row:
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return max(row.get("seq_lengths") or [len(row.get("input_ids", ()))])


def say_which_pairs_are_cut_off(pairs, config) -> None:
    """Say of how many tokenized pairs `max_length` cuts off the end of an answer, as the first ones show."""
    if config.max_length is None or config.truncation_mode != "keep_start":
        return
    lengths = [_tokens(pair) for pair in islice(pairs, LOOKED_AT)]
    cut = sum(length > config.max_length for length in lengths)
    if cut:
        say(
            f"{cut} of the first {len(lengths)} pairs have an answer that `max_length` {config.max_length} cuts off: "
            f"it teaches nothing about stopping. The longest has {max(lengths)} tokens."
        )


def say_what_is_cut_off(rows, tokenizer, config) -> None:
    """Say how much text a limit of `max_length` throws away, as the first rows show: TRL does it without a word."""
    keeps_all = config.packing and config.packing_strategy in ("wrapped", "bfd_split")
    if config.max_length is None or keeps_all:
        return
    share = share_cut_off(rows, tokenizer, config.max_length)
    if share >= 0.01:
        say(
            f"note: {share:.0%} of the tokens of the first {LOOKED_AT} texts are cut off: `max_length` is "
            f"{config.max_length}. `packing: true` with `packing_strategy: wrapped` keeps them all."
        )


def say_what_packing_costs(config, attention: str | None) -> None:
    """Say that rows laid end to end are kept apart by a mask of their whole square, where that is a large one."""
    batch, packed = config.per_device_train_batch_size, config.packing and config.packing_strategy != "wrapped"
    tokens = batch * (config.max_length or 0)
    if not packed or tokens < SQUARE or attention not in (None, "sdpa", "eager"):
        return
    if batch > 1:
        way = f"`per_device_train_batch_size: 1` and {batch} times the accumulation make the same step for less."
    else:
        way = "Of rows that are nearly so long `packing: false` costs less: one at a time has no padding."
    say(
        f"note: `packing` lays the rows of a batch end to end. {attention or 'sdpa'} masks, and pays for, the whole "
        f"square of {tokens:,} x {tokens:,} tokens. {way}"
    )


def share_cut_off(rows, tokenizer, max_length: int) -> float:
    """Of the tokens of the first texts, with the one that ends each, the share that stands beyond `max_length`."""
    texts = [row["text"] for row in islice(rows, LOOKED_AT)]
    lengths = [len(ids) + 1 for ids in tokenizer(texts, verbose=False)["input_ids"]]
    return sum(max(0, length - max_length) for length in lengths) / sum(lengths)


def _mixed(mixture, shapes: tuple[str, ...]) -> tuple:
    """(the splits of TRL's `datasets:` mixture, the one of `shapes` that all its parts have).

    What one part has and another lacks TRL fills with None, so a shape that only some have would train on nothing.
    """
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    parts = {}
    for entry in mixture.datasets:
        if checkpoint.is_local(entry.path) and not Path(entry.path).exists():
            raise ValueError(f"`datasets`: there is no data directory '{entry.path}'. `suite prepare NAME` writes it.")
        if Path(entry.path).is_dir():
            _check_one_kind(entry)
        elif lines.suffix(Path(entry.path)) in lines.SUFFIXES:
            raise ValueError(
                f"`datasets`: '{entry.path}' is a file, and a mixture takes directories and data sets of the Hub. "
                "`suite prepare files --source FILE --output_dir data/NAME` makes a directory of it."
            )
        try:
            part = _of_trl(replace(mixture, datasets=[entry], test_split_size=None))["train"]
            parts[entry.path] = list(next(iter(part), {}))
        except (OSError, RuntimeError, UnicodeDecodeError, ArrowException, DatasetGenerationError) as error:
            if Path(entry.path).exists():
                raise ValueError(f"`datasets`: cannot read '{entry.path}': {reading.cause(error)}.{_GATHER}") from error
            # else the network and the Hub's own refusals
            told = reading.cause(error) if isinstance(error, DatasetGenerationError) else error
            raise ValueError(f"`datasets`: cannot load '{entry.path}' from the Hub: {told}") from error
        columns.check(parts[entry.path], shapes, f"`datasets`: {entry.path}")
    common = [s for s in shapes if all(columns.shape_of(names, (s,)) for names in parts.values())]
    if not common:
        told = "; ".join(f"{path} has {', '.join(names)}" for path, names in parts.items())
        raise ValueError(f"The parts of `datasets` have no shape in common: {told}. Mix rows of one shape only.")
    return _of_trl(mixture), (common[0],)


def _check_one_kind(entry) -> None:
    """Raise `ValueError` for a directory of several kinds of files: `datasets` reads one of them, and says nothing.

    Where files are called as splits are, it reads those alone, and else all; of these the kind that most of them have.
    """
    if entry.data_files:
        return
    folder = Path(entry.path, entry.data_dir or "")
    there = [p for place in (folder, folder / "data") for p in sorted(place.glob("*")) if p.is_file()]
    there = [p for p in there if lines.suffix(p) in lines.SUFFIXES and not p.name.startswith((".", "__"))]
    read = [p for p in there if _CALLED_AS_SPLIT.search(p.name)] or there
    many = Counter(map(lines.suffix, read))
    chosen = max(many, key=lambda kind: (many[kind], kind == ".parquet", kind == ".jsonl", kind == ".json"), default="")
    rows = {lines.suffix(path) for path in read if not reading.is_note(path)}
    one = {".json", ".jsonl"} if "json" in chosen else {chosen}
    if rows - one:
        told = ", ".join(sorted({lines.suffix(path) for path in read}))
        raise ValueError(
            f"`datasets`: '{entry.path}' holds files of several kinds ({told}), of which one would be read.{_GATHER}"
        )


def _of_trl(mixture):
    """TRL's mixture; its parts have no revision there, so a pinned one carries it in its name.

    TRL sets test rows aside by numpy's random numbers as they happen to stand: every rank would choose others, and so
    would a run that goes on. Here they are the same everywhere, and numpy draws on as if nothing had been asked.
    """
    from unittest.mock import patch

    import numpy
    from datasets.data_files import resolve_pattern
    from trl import get_dataset

    def found(pattern, base_path, *more, **how):  # `datasets` takes the name of a directory for a pattern
        return resolve_pattern(pattern, glob.escape(base_path) if Path(base_path).is_dir() else base_path, *more, **how)

    before = numpy.random.get_state()
    numpy.random.seed(0)
    try:
        with patch("datasets.load_dataset", pins.load_dataset), patch("datasets.data_files.resolve_pattern", found):
            return get_dataset(mixture)
    finally:
        numpy.random.set_state(before)


def _splits(script, wanted: list[str]) -> dict:
    """Every split of `dataset_name`: parquet files that `prepare` wrote, files of others, or a data set on the Hub.

    Of what lies on this disk those that are not `wanted` are named, and not read.
    """
    from datasets.exceptions import DatasetGenerationError

    there = Path(script.dataset_name)
    prepared = {p.stem: p for p in sorted(there.glob("*.parquet")) if p.is_file() and "-of-" not in p.stem}
    if there.exists() and script.dataset_train_split not in prepared:
        names = (script.dataset_train_split, script.dataset_test_split)
        return files.splits(script.dataset_name, *names, streaming=script.dataset_streaming, wanted=wanted)
    if prepared:
        reading.tell_of_others(script.dataset_name, prepared.values())
        streaming = script.dataset_streaming
        return {split: _prepared(path, streaming) if split in wanted else None for split, path in prepared.items()}
    if checkpoint.is_local(script.dataset_name) or lines.suffix(there) in lines.SUFFIXES:
        raise ValueError(
            f"There is no data directory '{script.dataset_name}', and no file. `suite prepare NAME` writes data/NAME; "
            "see `suite list data`."
        )
    try:
        return pins.load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)
    except DatasetGenerationError as error:
        raise ValueError(
            f"Cannot read '{script.dataset_name}' from the Hub: {reading.cause(error)}. A copy of its files on this "
            "disk is read row by row: name that."
        ) from error
    except (OSError, RuntimeError) as error:  # the network and the Hub's own refusals
        raise ValueError(f"Cannot load '{script.dataset_name}' from the Hub: {error}") from error


def _prepared(path: Path, streaming: bool):
    """The rows of one parquet file: of a call `datasets` casts all files to the columns of the first one, and a split
    may lack what another has."""
    from datasets.exceptions import DatasetGenerationError

    if lines.parquet_file(path).metadata.num_rows == 0:  # a traceback inside `datasets`
        raise ValueError(f"{path} has no rows.")
    try:  # by a name that is not taken for a pattern
        return pins.load_dataset("parquet", data_files=glob.escape(str(path)), split="train", streaming=streaming)
    except DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read: {reading.cause(error)}. `suite prepare` writes it anew.") from error


def _shaped(dataset, shapes: tuple[str, ...], where: str, every_column: bool, beside_turns: bool, asked_with):
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{where} has no rows.")
    shape = columns.check(first.keys(), shapes, where)
    columns.check_cells(dataset, first, columns.SHAPES[shape], where)
    names = columns.SHAPES[shape]
    of_turns, asks = isinstance(first[names[0]], list), shape in ("prompt", "prompt+solution")
    if of_turns and asks and beside_turns and not every_column:
        _say_what_is_not_asked(first, where, asked_with)
    told = [name for name in columns.BESIDE_TURNS if name in first] if of_turns and not asks and beside_turns else []
    said = tuple(name for name in names if name != "solution") if of_turns else ()
    # Before any is selected: in a stream of several parts none can be that one of them lacks.
    dataset = columns.settled(dataset, first, told, said, where, code(columns))
    if every_column:
        return dataset
    if shape == "prompt+solution":
        return dataset.remove_columns([c for c in ("completion", "text") if c in first])
    return dataset.select_columns([*names, *told])


def _say_what_is_not_asked(first: dict, where: str, asked_with: dict | None) -> None:
    """Of a row that is answered TRL's GRPO and distillation give the chat template the prompt alone, and so do ours."""
    idle = columns.not_asked(first, asked_with)
    if idle:
        told = " and ".join(f"`{name}`" for name in idle)
        way = " What all rows say alike the key `chat_template_kwargs` of GRPO and distillation can say."
        say(
            f"note: {where}: the prompts are asked without {told}; SFT and DPO alone read that of a row."
            f"{way if 'chat_template_kwargs' in idle else ''}"
        )
