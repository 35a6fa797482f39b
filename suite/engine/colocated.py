"""The vLLM that TRL starts inside a trainer (`vllm_mode: colocate`): it takes new weights on a CPU as well, draws with
seeds that a resumed run finds again, and ends with the process."""

import atexit
import copy
import gc
import random
from collections import Counter

from suite.engine.vllm_setup import require_window


def make_ready(config, model) -> None:
    """Before vLLM is started inside a trainer.

    Raises `ValueError` for a window that it would not give the model, and for RoPE scaling that it would not hear of.
    """
    if config.vllm_mode == "colocate":
        if (config.model_init_kwargs or {}).get("rope_parameters"):
            raise ValueError(
                f"model_init_kwargs.rope_parameters: vLLM reads the config.json of '{model.model_name_or_path}' and "
                "not these, so it would sample from another model than is trained. Write rope_parameters and "
                "max_position_embeddings into that config.json, or into a copy's, or set `use_vllm: false`."
            )
        require_window(config.vllm_max_model_length, model.model_name_or_path, model.model_revision)
        let_vllm_take_new_weights()


def let_vllm_take_new_weights() -> None:
    """Before a colocated run on a CPU: have vLLM's linear layers multiply by the weights they were loaded with.

    Where the CPU has the instructions, vLLM 0.31 packs each weight once and multiplies by the packed copy. New weights
    then find no parameter to go to ("'Parameter' object has no attribute 'weight_loader'"), and the head would go on
    answering with the old ones, in silence. A mixture's experts it packs in place, where new weights would be taken for
    packed ones: they stay as they come, and are packed for each product.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    def unpacked(layer, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    def packed_anew(output, x, gate_up, down, *rest) -> None:
        packed = (_custom_ops.cpu_prepack_moe_weight(weight, rest[5]) for weight in (gate_up, down))
        _custom_ops.cpu_fused_moe(output, x, *packed, *rest)

    utils.dispatch_cpu_unquantized_gemm = unpacked
    cpu_moe.cpu_prepack_moe_weight = lambda weight, isa: weight
    cpu_moe.cpu_fused_moe = packed_anew


def settle(trainer) -> None:
    """After vLLM was started inside a trainer."""
    seed_rollouts(trainer)
    end_with_the_process(trainer)


def seed_rollouts(trainer) -> None:
    """Have the vLLM inside a trainer draw each completion with a seed of its own, which a resumed run finds again.

    TRL seeds vLLM once, when it starts, and what it draws then hangs on all that was drawn before. Here a seed follows
    from the run's seed, the step, the prompt and the number of the sample. Ranks are told apart, for a group may lie on
    several of them; those that share one model must draw alike.
    """
    vllm, args = trainer.vllm_generation, trainer.args
    generate = vllm.llm.generate
    place = args.process_index // vllm.tensor_parallel_size
    calls: Counter = Counter()

    def seeded(prompts, sampling_params, **how):
        point = (args.seed, trainer.state.global_step, trainer._step, trainer.model.training, place)
        if point not in calls:
            calls.clear()
        calls[point] += 1  # one rollout may take several turns, one evaluation several batches
        drawn: Counter = Counter()
        each = []
        for prompt in prompts:
            ids = tuple(prompt["prompt_token_ids"])
            params = copy.copy(sampling_params)
            params.seed = random.Random(f"{point}/{calls[point]}/{ids}/{drawn[ids]}").getrandbits(31)
            drawn[ids] += 1
            each.append(params)
        return generate(prompts, sampling_params=each, **how)

    vllm.llm.generate = seeded


def end_with_the_process(trainer) -> None:
    """The vLLM inside a trainer would tidy up at exit, find its process groups ended by accelerate, and end in a
    traceback. Its memory goes with the process; what it kept from the garbage collector is given back as it would."""
    from vllm.v1.engine.core_client import InprocClient

    core = trainer.vllm_generation.llm.llm_engine.engine_core
    if isinstance(core, InprocClient):
        core._finalizer.atexit = False
        atexit.register(gc.unfreeze)
