"""A teacher answers prompts, and what the rewards accept becomes rows for `suite sft`: distillation by traces, or RFT.

suite sample --config configs/qwen2.5-0.5b/rft/1-sample.yaml
suite sample --model_name_or_path runs/grpo --use_vllm true --dataset_name data/gsm8k --output_dir data/gsm8k-rft
suite sample --model_name_or_path Qwen/QwQ-32B --base_url http://localhost:8000/v1 --config ...

`output_dir` gets train.parquet (prompt, completion and the row's other columns), sample.json (settings and counts) and
answers.jsonl (every answer, accepted or not). Answers are written down as they come, beside `output_dir` until all are
there: what was killed asks only for what is missing, as it would have asked, and judges only what is not judged yet;
and other rewards are tried on the same answers.
"""

import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from suite import args, checkpoint, columns, ending, endpoint, engine, rewards, run, source, whole
from suite.answers import Answers, record_of
from suite.asking import require_answerable
from suite.engine.reward_model import RewardModel
from suite.keys import RewardFuncArguments
from suite.registry import nearest
from suite.rewards import proof, scoring
from suite.values import as_mapping, coerce
from suite.whole import digest

REFUSED = "refused by the endpoint"  # among the reasons why an answer is not there


@dataclass
class SampleArguments:
    """Who answers, how often, and what is kept."""

    model_name_or_path: str = field(metadata={"help": "Who answers: a checkpoint, a model on the Hub or of base_url."})
    output_dir: str = field(metadata={"help": "Where train.parquet, sample.json and answers.jsonl go."})
    max_rows: int | None = field(default=None, metadata={"help": "Take only the first rows of the training split."})
    num_generations: int = field(default=4, metadata={"help": "Answers per prompt."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest answer, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of the answers."})
    top_p: float = field(default=1.0, metadata={"help": "Of the answers."})
    seed: int = field(default=0, metadata={"help": "Of the answers."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the rewards, 1 each: whose sum is highest is kept first."}
    )
    min_reward: dict | str | None = field(
        default=None,
        metadata={"help": 'The least that a kept answer must earn: {"accuracy": 1.0}. Left out: 1 from every reward.'},
    )
    max_per_prompt: int | None = field(
        default=None, metadata={"help": "Keep at most this many answers per prompt; by default all."}
    )

    def __post_init__(self):
        for key in ("num_generations", "max_completion_length", "max_rows", "max_per_prompt"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1.")
        engine.Sampling(temperature=self.temperature, top_p=self.top_p)  # which knows their ranges
        if self.temperature == 0 and self.num_generations > 1:
            raise ValueError(f"temperature: 0 gives the same answer {self.num_generations} times (num_generations).")
        if self.min_reward is not None:
            given = as_mapping("min_reward", self.min_reward)
            self.min_reward = {name: coerce(f"min_reward.{name}", v, float) for name, v in given.items()}


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return (
        SampleArguments,
        endpoint.EndpointArguments,
        engine.EngineArguments,
        RewardFuncArguments,
        ScriptArguments,
        DatasetMixtureConfig,
    )


@ending.orderly_end()
def main(argv=None) -> None:
    sample, there, keys, reward, script, mixture, written = args.parse(arguments(), argv, needs_config=False)
    _check(sample, there, keys, reward, written)
    funcs = dict(zip(reward.reward_funcs, rewards.load_all(reward.reward_funcs, reward.reward_kwargs), strict=True))
    template_kwargs = there.request_kwargs.get("chat_template_kwargs")
    own = as_mapping("request_kwargs.chat_template_kwargs", template_kwargs)
    rows, repeated = _rows(sample, script, mixture)
    idle = _not_asked(rows, own)
    rewards.check_columns(funcs, rows[0], "The rows")
    asking, settings = _asking(sample, there, keys), _settings(sample, reward, funcs)
    # With `idle`, for an older `suite` has copied these columns beside the same answers.
    identity = digest([asking, settings, rows, *idle])
    target = Path(sample.output_dir)
    whole.restore(target)
    refused = _refused(target, identity)
    if refused == 0:
        if whole.partial_of(target).exists():  # what a kill at the very end has left goes, and new answers stay
            Answers(target, asking).close()
        _reuse(target)
        return
    with Answers(target, asking) as answers:
        begun = time.monotonic()
        said = _said(rows, sample, there, keys, answers, refused)
        if said is None:
            _reuse(target)
            return
        scores = _scores(said, funcs, reward, settings, target)
        reasons = sift(said, {name: score.values for name, score in scores.items()}, settings)
        record = {
            "identity": identity,
            "asking": asking,
            "answered_by": there.base_url or ("vllm" if keys.use_vllm else "transformers"),
            "settings": settings,
            "rows": len(rows),
            "repeated_prompts": repeated,
            **counts(said, reasons),
            "seconds": round(time.monotonic() - begun, 2),
        }
        print(f"{scoring.table(scores)}\n\n{told(record)}")
        kept = [row for row, reason in zip(said.rows, reasons, strict=True) if reason == "kept"]
        if not kept:
            raise ValueError(
                f"Not one answer was kept, so {target} is not written. Try other rewards, or a lower `min_reward`: the "
                "answers are there, and nothing is asked again."
            )
        answers.publish([{k: v for k, v in row.items() if k not in ("completion_ids", *idle)} for row in kept], record)
        whole.remove(whole.journal_of(target))
    print(f"{len(kept)} rows: {target}/train.parquet")


def _settings(sample: SampleArguments, reward, funcs: dict) -> dict:
    """All that decides which answers are kept."""
    return {
        "num_generations": sample.num_generations,
        "reward_funcs": {name: rewards.version(name, func) for name, func in funcs.items()},
        "reward_kwargs": reward.reward_kwargs,
        "reward_weights": dict(zip(funcs, sample.reward_weights or [1.0] * len(funcs), strict=True)),
        "min_reward": dict.fromkeys(funcs, 1.0) if sample.min_reward is None else sample.min_reward,
        "max_per_prompt": sample.max_per_prompt,
    }


def _refused(target: Path, identity: str) -> int | None:
    """How many of these very answers the endpoint refused when `target` was written; None where it holds others."""
    held = record_of(target)
    is_same = held.get("identity") == identity and (target / "train.parquet").is_file()
    return held["answers"].get(REFUSED, 0) if is_same else None


def _reuse(target: Path) -> None:
    whole.remove(whole.journal_of(target))
    print(f"{target} holds these very answers already; reusing them.")


def _said(rows: list[dict], sample: SampleArguments, there, keys, answers: Answers, refused: int | None):
    """All answers that there are, now that the missing ones were asked for; None where as many are `refused` as when
    the target was written. Then nothing new came, and a server that is gone by now costs nothing either."""
    try:
        ask(rows, sample, there, keys, answers)
    except ValueError as error:
        if Said.of(rows, sample.num_generations, answers).refused != refused:
            raise
        print(f"The {refused} answers that were refused before cannot be had now either: {error}")
    said = Said.of(rows, sample.num_generations, answers)
    return None if said.refused == refused else said


def _scores(said: "Said", funcs: dict, reward, settings: dict, target: Path) -> dict[str, scoring.Score]:
    """What the rewards give to each answer; noted as they give it, for some run code or ask a model."""
    head = {"answers": digest([digest(row) for row in said.rows]), "rewards": settings["reward_funcs"]}
    with whole.Journal(whole.journal_of(target), target, head | {"kwargs": digest(reward.reward_kwargs)}) as journal:
        return scoring.score_rows(said.rows, _callable(funcs), progress=True, journal=journal)


def _check(sample: SampleArguments, there, keys, reward: RewardFuncArguments, written: dict) -> None:
    """What can be known to be wrong before any row is read."""
    for name in sample.min_reward or {}:
        if name not in reward.reward_funcs:
            near = nearest(name, reward.reward_funcs)
            raise ValueError(f"min_reward: reward_funcs {reward.reward_funcs} does not name '{name}'.{near}")
    if there.base_url is not None:
        if keys.use_vllm:
            raise ValueError("use_vllm loads a model here, and base_url names one elsewhere. Remove one of the two.")
        idle = [f.name for f in fields(engine.EngineArguments) if f.name in written]
        if idle and "use_vllm" not in written:
            raise ValueError(
                f"{', '.join(idle)}: this is for a model that is loaded here, and base_url names one elsewhere. "
                "Remove it, or set `use_vllm: false`."
            )
    elif there.request_kwargs:
        raise ValueError("request_kwargs are for requests to a base_url, and there is none.")
    run.check_idle_keys(written)
    if there.base_url is None:
        engine.require_asked([sample.model_name_or_path], keys)
        checkpoint.refuse_adapter(sample.model_name_or_path)


def _rows(sample: SampleArguments, script, mixture) -> tuple[list[dict], int]:
    """(the first `max_rows` rows, each prompt once; how many rows repeated a prompt)."""
    there, _ = source.rows(script, mixture, ("prompt+solution",), beside_turns=False)
    read = list(itertools.islice(there, sample.max_rows))
    once: dict[str, dict] = {}
    for row in read:
        once.setdefault(digest(row["prompt"]), row)
    return list(once.values()), len(read) - len(once)


def _not_asked(rows: list[dict], own: dict) -> list[str]:
    """The columns that are not copied, which is said: of them SFT would tell the student what nobody told the teacher,
    unless requests have it as their `own` chat_template_kwargs."""
    found = {name for row in rows if columns.is_conversational(row) for name in columns.not_asked(row, own)}
    if found:
        told = " and ".join(f"`{name}`" for name in sorted(found))
        way = " What all rows say alike `chat_template_kwargs` in the `request_kwargs` to an endpoint can say."
        print(
            f"note: the prompts are asked without {told} of the rows, which will not be written beside the answers."
            f"{way if 'chat_template_kwargs' in found else ''}"
        )
    return sorted(found)


def _asking(sample: SampleArguments, there, keys) -> dict:
    """All that decides what an answer is like. Where the model runs does not: a server may move."""
    asking = {
        "model": sample.model_name_or_path,
        "max_completion_length": sample.max_completion_length,
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        "seed": sample.seed,
    }
    if there.base_url is not None:
        return {**asking, "request_kwargs": there.request_kwargs}
    return {**asking, "fingerprint": checkpoint.fingerprint(sample.model_name_or_path), "dtype": keys.dtype}


def _callable(funcs: dict[str, Callable | str]) -> dict[str, Callable]:
    """The rewards, those of models loaded."""
    return {name: RewardModel(func) if isinstance(func, str) else func for name, func in funcs.items()}


def ask(rows: list[dict], sample: SampleArguments, there, keys, answers: Answers) -> None:
    """Ask what has no answer yet, and write each answer down as it comes."""
    from tqdm import tqdm

    digests = [digest(row["prompt"]) for row in rows]
    asked = [(i, n) for i in range(len(rows)) for n in range(sample.num_generations)]
    total, there_already = len(asked), sum(answers.get(digests[i], n) is not None for i, n in asked)
    # What was published before is not asked again. An asking that was interrupted is the same list with gaps.
    asked = [(i, n) for i, n in asked if (digests[i], n) not in answers.published]
    done = {at for at, (i, n) in enumerate(asked) if answers.get(digests[i], n) is not None}
    if there_already:
        print(f"{there_already} of {total} answers are there; asking for {total - there_already}.", flush=True)
    if there_already == total:
        return
    published = len(answers.published)
    sampling = engine.Sampling(
        max_new_tokens=sample.max_completion_length,
        temperature=sample.temperature,
        top_p=sample.top_p,
        # Drawn with the numbers of the first time, the new answers to a prompt would repeat those that are there.
        seed=random.Random(f"{sample.seed}/{published}").getrandbits(31) if published else sample.seed,
    )
    if there.base_url is not None:
        # Where most answers are there, all that is left may be what was refused the last time.
        model = endpoint.EndpointEngine(sample.model_name_or_path, there, answered=2 * there_already > total)
    else:
        require_answerable([sample.model_name_or_path], [row["prompt"] for row in rows], keys)
        model = engine.load_as_asked(sample.model_name_or_path, keys)
    opened = model.tokenizer is not None and run.opens_thinking(model.tokenizer)
    before = len(answers)
    with closing(model), tqdm(total=total, initial=there_already, unit=" answers") as bar:
        try:
            for at, said in model.stream([rows[i]["prompt"] for i, _ in asked], sampling, done):
                i, number = asked[at]
                if said.tokens:  # a request that was refused may be asked again another day
                    text = with_thinking(said.text, rows[i]["prompt"], opened)
                    answers.add(digests[i], number, replace(said, text=text))
                bar.update()
        except ValueError as error:
            if len(answers) == before:
                raise
            raise ValueError(f"{error} {len(answers)} answers are kept: the same command asks for the rest.") from None


def with_thinking(text: str, prompt, think_opened: bool) -> str:
    """An answer as a student must see it: with the <think> that the teacher's chat template has written for it."""
    if not think_opened or isinstance(prompt, str) or text.lstrip().startswith("<think>"):
        return text
    return f"<think>\n{text.lstrip()}"


@dataclass
class Said:
    """The answers that there are, as rows in the shape of their prompts, in the order of prompts and numbers."""

    rows: list[dict]
    completions: list[engine.Completion]
    prompts: list[int]  # of each answer the number of its prompt
    asked: int

    @property
    def refused(self) -> int:
        """How many answers an endpoint did not give."""
        return self.asked - len(self.rows)

    @classmethod
    def of(cls, rows: list[dict], num_generations: int, answers: Answers) -> "Said":
        said = cls([], [], [], len(rows) * num_generations)
        for i, row in enumerate(rows):
            prompt = digest(row["prompt"])
            for completion in filter(None, (answers.get(prompt, number) for number in range(num_generations))):
                text = completion.text
                turns = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
                # Rewards count ids; which ones they are is not known of every teacher.
                said.rows.append({**row, "completion": turns, "completion_ids": range(completion.tokens)})
                said.completions.append(completion)
                said.prompts.append(i)
        return said


def sift(said: Said, scores: dict[str, list[float | None]], settings: dict) -> list[str]:
    """For each answer "kept", or the first reason against it.

    Kept is an answer that came to its end, that every reward of `min_reward` could judge and gave as much, that says
    something else than the kept answers to its prompt before it, and that is among the `max_per_prompt` of its prompt
    with the highest weighted sum of rewards; of equals the earlier one stays.
    """
    reasons = []
    seen: set[tuple[int, str]] = set()
    for at, (completion, prompt) in enumerate(zip(said.completions, said.prompts, strict=True)):
        reason = _reason(completion, {name: values[at] for name, values in scores.items()}, settings["min_reward"])
        words = completion.text.strip()
        if reason == "kept" and (prompt, words) in seen:
            reason = "duplicate"
        if reason == "kept":
            seen.add((prompt, words))
        reasons.append(reason)
    if settings["max_per_prompt"] is not None:
        sums = proof.weighted(scores, settings["reward_weights"])
        groups: dict[int, list[int]] = {}
        for at, prompt in enumerate(said.prompts):
            if reasons[at] == "kept":
                groups.setdefault(prompt, []).append(at)
        for group in groups.values():
            for at in sorted(group, key=lambda at: -sums[at])[settings["max_per_prompt"] :]:
                reasons[at] = "over max_per_prompt"
    return reasons


def _reason(completion: engine.Completion, scores: dict[str, float | None], least: dict[str, float]) -> str:
    if not completion.finished:
        return "cut off"
    if not completion.text.strip():
        return "empty"
    if any(scores[name] is None for name in least):
        return "not judged"
    return next((f"{name} < {value:g}" for name, value in least.items() if scores[name] < value), "kept")


def counts(said: Said, reasons: list[str]) -> dict:
    """Answers by reason, prompts, tokens."""
    found = Counter(reasons)
    by_reason = {"kept": found.pop("kept", 0), **dict(found.most_common())}
    if said.refused:
        by_reason[REFUSED] = said.refused
    kept = {prompt for prompt, reason in zip(said.prompts, reasons, strict=True) if reason == "kept"}
    return {
        "answers": by_reason,
        "prompts_with_kept": len(kept),
        "tokens": sum(completion.tokens for completion in said.completions),
    }


def told(record: dict) -> str:
    """The counts as a table."""
    total = sum(record["answers"].values())
    lines = [f"{number:>8}  {number / total:6.1%}  {reason}" for reason, number in record["answers"].items()]
    return "\n".join(
        [
            " answers   share",
            *lines,
            f"{record['prompts_with_kept']} of {record['rows']} prompts have an answer that is kept; "
            f"{record['tokens']:,} tokens; {record['seconds']:.1f} seconds",
        ]
    )


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
