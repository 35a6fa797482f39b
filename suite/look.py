"""The look after a save: read back from disk what was written, and say what differs from what it should be.

Each look returns findings, one sentence each; `demand` makes one error of them. Weights are read one tensor at a time
and stay on the CPU, so that a look costs no more memory than the largest tensor; only what asks for logits or
completions is handed a model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from suite import checkpoint, reasoning, turns

# float32 rounds in the order of its sums; a wrong merge, or a wrong configuration, is off by far more.
TOLERANCE = 1e-4
OURS = ("miniqwen", "qwen2", "qwen2_moe", "deepseek_v2")  # model types that the suite trains and writes
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ASKED = [{"role": "user", "content": "What is 2+2?"}]


def demand(path: str | Path, findings: list[str]) -> None:
    """Raise one `ValueError` that names every finding. What was written stays where it is."""
    if findings:
        raise ValueError(
            f"What was saved in '{path}' is not what it should be: {'; '.join(findings)}. The files are kept."
        )


def at_files(
    path: str | Path, *, memory: Mapping | None = None, eos_token: str | None = None, keeps_thoughts: bool = True
) -> list[str]:
    """Every look that needs no model: the directory is whole, its tensors are sound, and it says how a turn ends.

    `memory` has the tensors as they were saved, by name; `eos_token` is what the model was trained to stop at.
    """
    try:
        checkpoint.check_whole(path)
    except ValueError as error:  # a finding like any other: there is no tensor to read behind it
        return [str(error).rstrip(".")]
    path = Path(path)
    return at_tensors(path, memory) + at_turns(path, eos_token, keeps_thoughts)


def at_tensors(path: Path, memory: Mapping | None = None) -> list[str]:
    """Whole compare: every value on disk is finite and, where `memory` holds the tensor, equal to it."""
    import torch
    from safetensors import safe_open

    findings, seen, ends = [], set(), {}
    memory = None if memory is None else _as_stored(memory)
    for shard in sorted(path.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                seen.add(name)
                if name in (HEAD, EMBEDDING):
                    ends[name] = tensor
                if not is_finite(tensor):
                    bad = int((~tensor.isfinite()).sum())
                    findings.append(f"{name} has {bad} of {tensor.numel()} values that are not finite")
                elif memory is not None and name not in memory:
                    findings.append(f"{name} is on disk and not in the model")
                elif memory is not None and not torch.equal(tensor, memory[name].detach().to("cpu")):
                    findings.append(f"{name} on disk {_difference(tensor, memory[name].detach().to('cpu'))}")
    if memory is not None:
        written = {memory[name].data_ptr() for name in seen & memory.keys()}
        lost = [name for name, tensor in memory.items() if name not in seen and tensor.data_ptr() not in written]
        findings += [f"{name} is in the model and not on disk" for name in lost]
    return findings + _at_ties(path, ends)


def _as_stored(memory: Mapping) -> dict:
    """The tensors by their names on disk, where each expert of a mixture has its own; in memory all are one."""
    found = {}
    for name, tensor in memory.items():
        home, _, what = name.rpartition(".")
        if not home.endswith(".experts") or tensor.dim() != 3:
            found[name] = tensor
            continue
        parts = tensor.chunk(2, dim=1) if what == "gate_up_proj" else [tensor]  # (E, F, C) each, or (E, C, F)
        for part, called in zip(parts, ("gate_proj", "up_proj") if len(parts) == 2 else (what,), strict=True):
            found |= {f"{home}.{expert}.{called}.weight": each for expert, each in enumerate(part)}
    return found


def is_finite(tensor) -> bool:
    """Whether no value is NaN or infinite. Smallest and largest show both, at a tenth of the time of asking each."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(end.isfinite() for end in tensor.aminmax())


def _difference(disk, memory) -> str:
    if disk.shape != memory.shape:
        return f"has the shape {tuple(disk.shape)}, in memory {tuple(memory.shape)}"
    if disk.dtype != memory.dtype:
        return f"is {disk.dtype}, in memory {memory.dtype}"
    return f"differs from memory by up to {(disk.float() - memory.float()).abs().max().item():.3g}"


def _at_ties(path: Path, ends: dict) -> list[str]:
    """Whether head and embedding are as config.json says: one tensor, or two."""
    if not (path / "config.json").is_file():
        return []
    tied = checkpoint.read_json(path / "config.json").get("tie_word_embeddings", True)
    if tied and len(ends) == 2 and not ends[HEAD].equal(ends[EMBEDDING]):
        return [f"config.json ties {HEAD} to {EMBEDDING}, and on disk the two differ"]
    if not tied and EMBEDDING in ends and HEAD not in ends:
        return [f"config.json ties no weights, and {HEAD} is not on disk"]
    return []


def at_turns(path: Path, eos_token: str | None = None, keeps_thoughts: bool = True) -> list[str]:
    """Whether tokenizer, config.json, generation_config.json and chat template agree on what ends a turn.

    Without an `eos_token` that is what the chat template writes, or the tokenizer's EOS where there is no template.
    """
    if not (path / "tokenizer_config.json").is_file():
        return ["there is no tokenizer beside the weights (tokenizer_config.json is missing)"]
    from transformers import AutoTokenizer

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    tokenizer = AutoTokenizer.from_pretrained(path)
    ends = eos_token or (turns.end_of_turn(tokenizer) if tokenizer.chat_template else None) or tokenizer.eos_token
    if ends is None:
        return ["the tokenizer has neither an EOS nor a chat template that ends a turn"]
    number = tokenizer.convert_tokens_to_ids(ends)
    findings = []
    if tokenizer.eos_token != ends:
        findings.append(f"a turn ends with '{ends}', and the tokenizer's EOS is '{tokenizer.eos_token}'")
    for name in ("config.json", "generation_config.json"):
        if not (path / name).is_file():
            continue
        said = checkpoint.read_json(path / name).get("eos_token_id")
        if number not in (said if isinstance(said, list) else [said]):
            findings.append(f"a turn ends with '{ends}' ({number}), and {name} stops at eos_token_id {said}")
    return findings + (at_thoughts(tokenizer) if keeps_thoughts else [])


def at_thoughts(tokenizer) -> list[str]:
    """Whether a chat template writes what stands in <think> when it writes what the assistant said."""
    if not tokenizer.chat_template:
        return []
    said = {"role": "assistant", "content": reasoning.write("two and two", "4")}
    text = tokenizer.apply_chat_template([*_ASKED, said], tokenize=False)
    if "two and two" in text:
        return []
    return [
        "the chat template leaves <think> blocks out of what the assistant said, as R1-Distill's does; give one that "
        "keeps them by `chat_template_path`"
    ]


def logits(model, tokenizer):
    """What a model answers to a short conversation, or to text where there is no template: (T, V), float32."""
    import torch

    text = "What is 2+2? It is 4, for two and two are four."
    if tokenizer.chat_template:
        said = {"role": "assistant", "content": reasoning.write("two and two", "4")}
        text = tokenizer.apply_chat_template([*_ASKED, said], tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0].float().cpu()


def at_logits(what: str, found, expected) -> list[str]:
    """Whether two answers agree to 1e-4 of the largest logit (and to 1e-4 where logits are small)."""
    if found.shape != expected.shape:
        return [f"{what} has {found.shape[-1]} logits, where {expected.shape[-1]} are expected"]
    apart = (found - expected).abs().max().item()
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    return [] if apart <= allowed else [f"{what} differs by up to {apart:.3g} in its logits (allowed: {allowed:.3g})"]


def demand_weights(name: str | Path, model, told: Mapping) -> None:
    """Raise `ValueError` where `from_pretrained` has made up a tensor that a checkpoint does not hold.

    `told` is what it says by `output_loading_info`. A stock Qwen2MoE without a shared expert declares empty ones.
    """
    there = model.state_dict()
    lacking = {*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}
    made_up = sorted(key for key in lacking if key not in there or there[key].numel())
    if made_up:
        more = f" (and {len(made_up) - 1} more)" if made_up[1:] else ""
        raise ValueError(
            f"'{name}' does not hold all weights of its {model.config.model_type}: {made_up[0]}{more} is missing or of "
            "another shape, and random numbers would stand there. Take another checkpoint, or the config.json it had."
        )


def demand_names(path: Path) -> None:
    """The same for a directory of OURS whose tensors are not to be read here: by names and shapes alone.

    vLLM 0.31 begins with random numbers where one is missing: it asks of its own parameters whether something was
    loaded, and those of linear layers, heads and experts all count as loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    says = checkpoint.read_json(path / "config.json")
    is_packed = "quantization_config" in says or (path / "hf_quant_config.json").is_file()
    generates = all(name.endswith("ForCausalLM") for name in says.get("architectures") or ())
    if says.get("model_type") not in OURS or is_packed or not generates:
        return
    named = {name: torch.empty(shape, device="meta") for name, shape in checkpoint.shapes_of(path).items()}
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    how = {"config": config, "attn_implementation": "eager"}  # another may not be installed, and is not asked for
    with torch.device("meta"):
        of_class = type(AutoModelForCausalLM.from_config(**how, trust_remote_code=False))
    how |= {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _silence():
            model, told = of_class.from_pretrained(None, state_dict=named, **how)
    except RuntimeError as error:  # of one tensor in memory the parts on the disk are too few: experts
        raise ValueError(f"'{path}' does not hold all weights of its {config.model_type}: {error}") from error
    demand_weights(path, model, told)


@contextmanager
def _silence() -> Iterator[None]:
    """From transformers no bar and no report on weights, where none are loaded."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def at_model(path: Path, expected, adapted=None, alone=None) -> list[str]:
    """Load a directory and ask it: it answers `expected`, and it stops.

    Of a merged model `adapted` and `alone` are what the adapter and its base without it answered; rounding may have
    moved it from the first, but not as far as back to the second. On the CPU and in float32, whatever it is stored in.
    All three are `logits`, (T, V).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(path)
    answered = logits(model, tokenizer)
    findings = at_logits("the model on disk", answered, expected)
    if alone is not None and (answered - adapted).norm() >= (answered - alone).norm():
        findings.append(
            "the merge did nothing, the model answers as its base does and not as the adapter (a change smaller than "
            "the rounding of the weights is lost: `dtype: float32` keeps it)"
        )
    ends = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and ends[0].data_ptr() != ends[1].data_ptr():
        findings.append("head and embedding are no longer one tensor")
    return findings + at_stops(model, tokenizer)


def at_stops(model, tokenizer, max_new_tokens: int = 16) -> list[str]:
    """Whether generation, as the saved configurations have it, ends where the end of a turn is said.

    An untrained model need not say it: so it is put into its mouth once, and a greedy completion may not run past it.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Says(LogitsProcessor):
        """Leaves one token to choose."""

        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, float("-inf"))
            forced[:, ends] = 0
            return forced

    ends = tokenizer.eos_token_id
    text = "What is 2+2?"
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(_ASKED, add_generation_prompt=True, tokenize=False)
    asked = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends
    how = {"do_sample": False, "pad_token_id": pad}
    start = asked["input_ids"].shape[1]
    told = model.generate(**asked, **how, max_new_tokens=3, logits_processor=LogitsProcessorList([Says()]))
    if told.shape[1] > start + 1:
        return [f"generation runs on past '{tokenizer.eos_token}', the end of a turn"]
    said = model.generate(**asked, **how, max_new_tokens=max_new_tokens)[0, start:].tolist()
    return [f"a greedy completion runs on past '{tokenizer.eos_token}'"] if ends in said[:-1] else []
