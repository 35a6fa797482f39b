"""Prompts in, completions out, by transformers: stops, counts, order and seeds."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from suite import engine
from suite.engine import Sampling, vllm_setup
from suite.engine.colocated import seed_rollouts
from suite.engine.positions import most_of_vllm, positions_of
from suite.engine.vllm_setup import shares_of_gpus
from tests.conftest import ROOT

# What takes seconds to import, and waits until somebody needs it.
HEAVY = {"torch", "transformers", "trl", "datasets", "vllm"}
PROMPTS = [[{"role": "user", "content": text}] for text in ("12+34", "7+1", "a much longer prompt than 55+44", "9+9")]


@pytest.fixture(scope="module")
def loaded(miniqwen_dir):
    return engine.load(str(miniqwen_dir), batch_size=3, dtype="float32")


def test_no_file_of_the_engine_imports_what_takes_seconds_before_it_is_asked():
    names = [f"suite.engine.{path.stem}" for path in (ROOT / "suite/engine").glob("[a-z]*.py")]
    assert names
    code = f"import sys, {', '.join(names)}; print(*{HEAVY}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr + done.stdout


def test_batching_and_padding_change_nothing(loaded, miniqwen_dir):
    alone = engine.load(str(miniqwen_dir), batch_size=1, dtype="float32")
    sampling = Sampling(max_new_tokens=12)
    assert loaded.complete(PROMPTS, sampling) == alone.complete(PROMPTS, sampling)


def test_the_order_of_the_prompts_is_kept_and_n_is_n(loaded):
    found = loaded.complete(PROMPTS, Sampling(max_new_tokens=4, temperature=1.0, n=3, seed=1))
    assert [len(group) for group in found] == [3] * 4
    greedy = loaded.complete(PROMPTS[::-1], Sampling(max_new_tokens=8))
    assert greedy[::-1] == loaded.complete(PROMPTS, Sampling(max_new_tokens=8))


def test_the_same_seed_repeats_and_another_does_not(loaded):
    def sample(seed):
        return loaded.complete(PROMPTS, Sampling(max_new_tokens=12, temperature=1.0, seed=seed))

    assert sample(3) == sample(3) != sample(4)


# What a checkpoint's generation config may say and vLLM does not hear: each would change greedy answers or samples, or
# end in an error.
BENDS = {
    "repetition_penalty": 1.9, "no_repeat_ngram_size": 1, "bad_words_ids": [[n] for n in range(20, 200)],
    "suppress_tokens": list(range(20, 200)), "begin_suppress_tokens": list(range(20, 200)), "min_new_tokens": 12,
    "min_length": 100, "num_beams": 3, "sequence_bias": [[[n], -9.0] for n in range(20, 200)], "dola_layers": "low",
    "exponential_decay_length_penalty": [1, 9.0], "forced_eos_token_id": 7, "stop_strings": ["a"], "max_time": 0.0,
    "guidance_scale": 3.0, "prompt_lookup_num_tokens": 3, "watermarking_config": {"bias": 9.0},
    "return_dict_in_generate": True, "cache_implementation": "static", "use_cache": False,
}  # fmt: skip
OF_SAMPLES = {"min_p": 0.5, "typical_p": 0.2, "top_k": 2, "top_h": 0.1, "epsilon_cutoff": 0.02, "eta_cutoff": 0.02}


@pytest.mark.parametrize("in_training", [False, True])
def test_what_a_generation_config_says_of_sampling_changes_no_answer_and_stays_there(loaded, in_training):
    from transformers import GenerationConfig

    from suite.answering import _InTraining

    asked = _InTraining(loaded.model, loaded.tokenizer, 3) if in_training else loaded
    own = loaded.model.generation_config
    for sampling in (Sampling(max_new_tokens=10), Sampling(max_new_tokens=10, temperature=1.0, seed=1)):
        plain = asked.complete(PROMPTS, sampling)
        bends = BENDS | OF_SAMPLES if sampling.temperature else BENDS
        try:
            for key, value in bends.items():
                said = GenerationConfig(**own.to_dict() | {key: value, "do_sample": sampling.temperature > 0})
                loaded.model.generation_config = said
                before = said.to_dict()
                assert asked.complete(PROMPTS, sampling) == plain, key
                assert loaded.model.generation_config is said and said.to_dict() == before
        finally:
            loaded.model.generation_config = own


def test_a_trainer_that_samples_draws_by_its_own_keys_whatever_the_checkpoint_says(loaded):
    import torch
    from transformers import GenerationConfig

    keys = GenerationConfig(max_new_tokens=8, do_sample=True, top_k=0, pad_token_id=0, disable_compile=True)  # as TRL's
    trainer = SimpleNamespace(use_vllm=False, log_completions=False, generation_config=keys)
    engine.settle(trainer)
    own, ids = loaded.model.generation_config, torch.tensor([[5, 6, 7]] * 4)

    def drawn() -> list:
        torch.manual_seed(0)
        return loaded.model.generate(input_ids=ids, generation_config=trainer.generation_config).tolist()

    plain = drawn()
    try:
        for key, value in (BENDS | OF_SAMPLES).items():
            loaded.model.generation_config = GenerationConfig(**own.to_dict() | {key: value, "do_sample": True})
            assert drawn() == plain, key
    finally:
        loaded.model.generation_config = own
    assert trainer.generation_config.disable_compile and trainer.generation_config.max_new_tokens == 8


def test_a_completion_ends_at_the_stop_token_and_counts_it(loaded):
    stop = loaded.stop_ids[0]
    done = loaded._completion([50, 51, stop, 52])
    assert (done.tokens, done.finished) == (3, True)
    assert loaded._completion([50, 51]).finished is False


def test_every_declared_stop_token_stops_and_so_does_the_end_of_a_turn(tokenizer_dir):
    """As it comes, the tokenizer of a base model ends texts, and its template ends turns."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    text, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert engine.stop_ids(tokenizer, GenerationConfig(eos_token_id=[9, text])) == [9, text, turn]
    assert engine.stop_ids(tokenizer, GenerationConfig(eos_token_id=9)) == [9, text, turn]
    tokenizer.chat_template = None
    assert engine.stop_ids(tokenizer, GenerationConfig()) == [text]


def seeds_of(calls: int = 1, rank: int = 0, ranks_a_model: int = 1, seed: int = 1, step: int = 5, since: int = 0):
    """The seeds of a rollout at a step of a run that goes on since another; two prompts with two samples each."""

    def generate(prompts, sampling_params, use_tqdm):
        return [params.seed for params in sampling_params]

    trainer = SimpleNamespace(
        vllm_generation=SimpleNamespace(llm=SimpleNamespace(generate=generate), tensor_parallel_size=ranks_a_model),
        args=SimpleNamespace(seed=seed, process_index=rank),
        state=SimpleNamespace(global_step=0),
        model=SimpleNamespace(training=True),
        _step=0,
    )
    seed_rollouts(trainer)
    prompts = [{"prompt_token_ids": ids} for ids in ([1, 2], [1, 2], [12], [12])]

    def ask() -> list[int]:
        return trainer.vllm_generation.llm.generate(prompts, sampling_params=SimpleNamespace(seed=None), use_tqdm=False)

    for number in range(since, step):
        trainer.state.global_step, trainer._step = number, 2 * number
        ask()
    trainer.state.global_step, trainer._step = step, 2 * step
    if since < step:  # an evaluation, which goes before a save
        trainer.model.training = False
        ask()
        trainer.model.training = True
    return [ask() for _ in range(calls)][-1]


def test_each_completion_of_a_rollout_has_a_seed_that_hangs_on_nothing_that_was_drawn_before():
    found = seeds_of()
    assert found == seeds_of(since=5) == seeds_of(since=3)
    others = [seeds_of(calls=2), seeds_of(rank=1), seeds_of(seed=2), seeds_of(step=6)]
    assert len({*found, *(seed for other in others for seed in other)}) == 20
    assert seeds_of(rank=2, ranks_a_model=2) == seeds_of(rank=3, ranks_a_model=2) != found


def test_without_vllm_use_vllm_is_one_clear_error(monkeypatch, miniqwen_dir):
    monkeypatch.setattr(vllm_setup, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="use_vllm: true needs vLLM.*pip install 'qwen-suite\\[vllm\\]'"):
        engine.load(str(miniqwen_dir), use_vllm=True)


def test_replicas_share_the_gpus_there_are_neighbours_together():
    assert shares_of_gpus(["0", "1", "2", "3", "4"], 2, 2) == [["0", "1"], ["2", "3"]]
    assert shares_of_gpus(["GPU-a", "GPU-b"], 2, 1) == [["GPU-a"], ["GPU-b"]]
    with pytest.raises(ValueError, match="size: 2 times .*size: 2 needs 4 GPUs, and there are 3 here"):
        shares_of_gpus(["0", "1", "2"], 2, 2)
    with pytest.raises(ValueError, match="needs 2 GPUs, and there is 1 here"):
        shares_of_gpus(["0"], 1, 2)


@pytest.mark.parametrize(
    "key",
    ["per_device_eval_batch_size", "vllm_tensor_parallel_size", "vllm_data_parallel_size"],
)
def test_sizes_are_at_least_one(key):
    with pytest.raises(ValueError, match=f"{key}: 0 must be at least 1"):
        engine.EngineArguments(**{key: 0})


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_of_the_gpu_is_above_zero_and_at_most_one(share):
    with pytest.raises(ValueError, match=f"vllm_gpu_memory_utilization: {share} .*above 0 and at most 1"):
        engine.EngineArguments(vllm_gpu_memory_utilization=share)


def test_a_conversation_is_nothing_for_a_model_without_a_chat_template(miniqwen_dir):
    bare = engine.load(str(miniqwen_dir))
    bare.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="' has no chat template, and a prompt is a conversation.*suite sft"):
        bare.complete(PROMPTS, Sampling(max_new_tokens=1))
    assert len(bare.complete(["12+34="], Sampling(max_new_tokens=1))) == 1


def test_out_of_memory_is_one_line_that_names_the_way_out(loaded, monkeypatch):
    import torch

    for error in (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("... can't allocate memory: you tried")):

        def generate(error=error, **how):
            raise error

        monkeypatch.setattr(loaded.model, "generate", generate)
        with pytest.raises(
            ValueError, match="3 completions at a time, of up to [0-9]+ \\+ 12 tokens.*per_device_eval_batch"
        ):
            loaded.complete(PROMPTS, Sampling(max_new_tokens=12))


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 512),  # whoever sets it sets max_position_embeddings, too
    ],
)
def test_positions_are_counted_as_vllm_counts_them(rope, positions):
    from suite.model import MiniQwenConfig

    config = MiniQwenConfig(max_position_embeddings=512, rope_parameters={"rope_theta": 1e4, **rope})
    assert positions_of(config) == positions


@pytest.mark.parametrize(
    ("model", "keys", "most"),
    [
        ("qwen2", {}, 512),
        ("qwen2", {"rope_type": "default"}, 512),
        ("qwen2", {"rope_type": "dynamic", "factor": 2.0}, 1024),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ("qwen2", {"rope_type": "proportional", "factor": 2.0}, None),
        ("gemma3_text", {}, 512),
        ("gpt2", {}, 512),
    ],
)
def test_what_only_vllm_can_count_is_left_to_it(model, keys, most):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model, max_position_embeddings=512)
    if keys:
        config.rope_parameters = {"rope_theta": 1e4, **keys}
    assert most_of_vllm(config) == most
    config.model_max_length = 4096  # which vLLM lets win
    assert most_of_vllm(config) is None


def test_rope_scaling_of_which_vllm_would_not_hear_is_refused(miniqwen_dir):
    from suite.engine import colocated

    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    config = SimpleNamespace(vllm_mode="colocate", model_init_kwargs={"dtype": "float32", "rope_parameters": rope})
    with pytest.raises(ValueError, match="rope_parameters: vLLM reads the config.json of 'start' .* `use_vllm: false`"):
        colocated.make_ready(config, SimpleNamespace(model_name_or_path="start"))


def test_a_window_beyond_the_models_positions_is_refused_unless_vllm_is_told_to_allow_it(miniqwen_dir, monkeypatch):
    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    name = str(miniqwen_dir)
    for fits in (None, -1, 512):
        vllm_setup.require_window(fits, name)
    with pytest.raises(
        ValueError, match="vllm_max_model_length: 513 is more than the 512 positions .* Set at most 512"
    ):
        vllm_setup.require_window(513, name)
    vllm_setup.require_window(513, "runs/missing")  # which is told of elsewhere
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", " True")
    vllm_setup.require_window(513, name)


def test_a_prompt_without_room_for_an_answer_is_refused_and_nothing_is_asked(loaded):
    said = loaded.stream(["1+2", "x" * 511, "x" * 512], Sampling(max_new_tokens=4))
    with pytest.raises(
        ValueError, match="1 of 3 prompts do not fit: the longest has 512 tokens.* 512 positions .*max_prompt_tokens"
    ):
        next(said)


def test_an_answer_ends_with_the_positions_whatever_stands_beside_its_prompt(loaded):
    prompts, sampling = ["x" * 511, "x" * 509, "1+2"], Sampling(max_new_tokens=8)
    (one,), (few,), (more,) = together = loaded.complete(prompts, sampling)
    assert [one.tokens, few.tokens, more.tokens] == [1, 3, 8] and not one.finished
    assert together == [loaded.complete([prompt], sampling)[0] for prompt in prompts]


def test_the_longest_prompts_are_answered_first(loaded):
    order = [number for number, _ in loaded.stream(["1", "12+34=46", "1+2"] * 3, Sampling(max_new_tokens=2))]
    assert order == [1, 4, 7, 2, 5, 8, 0, 3, 6]


def test_completions_come_one_by_one_and_are_those_that_come_together(loaded):
    sampling = Sampling(max_new_tokens=6, temperature=1.0, n=2, seed=3)
    twice = [prompt for prompt in PROMPTS for _ in range(2)]
    one_by_one = loaded.stream(twice, sampling)
    first = next(one_by_one)
    found = dict([first, *one_by_one])
    assert sorted(found) == list(range(8))
    assert [[found[2 * i], found[2 * i + 1]] for i in range(4)] == loaded.complete(PROMPTS, sampling)


def test_what_is_done_is_left_out_and_the_rest_is_what_it_would_have_been(loaded):
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
    four_times = [prompt for prompt in PROMPTS for _ in range(4)]
    straight = dict(loaded.stream(four_times, sampling))
    assert len(set(straight.values())) > 8
    for done in ({0, 1, 2, 3, 4}, set(range(1, 16)), set(range(0, 16, 3)), set(range(16))):
        assert dict(loaded.stream(four_times, sampling, done)) == {n: straight[n] for n in straight if n not in done}


SYSTEM = {"role": "system", "content": "The answer to the problem is a number. 2+4=6 and 1+3=4"}


@pytest.mark.parametrize("kind", ["miniqwen_dir", "qwen2_dir"])
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(kind, request):
    """Also where a prompt is asked more than once, and one is the beginning of another."""
    model = engine.load(str(request.getfixturevalue(kind)), batch_size=5, dtype="float32")
    prompts = [[SYSTEM, *prompt] for prompt in PROMPTS for _ in range(2)]
    ids = engine.rendered(model.tokenizer, prompts)
    beginning = model._beginning(ids)
    known = len(engine.render(model.tokenizer, [SYSTEM])) - 4  # without the turn that is opened behind it
    assert len(beginning) == 2 and known <= beginning[0][0].shape[2] < min(map(len, ids))
    alone = [model.complete([prompt], Sampling(max_new_tokens=16))[0] for prompt in prompts]
    assert model.complete(prompts, Sampling(max_new_tokens=16)) == alone
    texts = ["2+4=6 1+3=4 12+34", "2+4=6 1+3=4 12+34=46 The answer", "2+4=6 1+3=4 12+34=46"]
    assert model._beginning(engine.rendered(model.tokenizer, texts))
    alone = [model.complete([text], Sampling(max_new_tokens=16))[0] for text in texts]
    assert model.complete(texts, Sampling(max_new_tokens=16)) == alone
    assert not model._beginning(engine.rendered(model.tokenizer, ["12", "9+1"]))


def test_a_progress_bar_sees_every_completion(loaded):
    seen = []

    def progress(completions, total):
        seen.append(total)
        for completion in completions:
            seen.append(completion)
            yield completion

    loaded.complete(PROMPTS, Sampling(max_new_tokens=2, temperature=1.0, n=3), progress)
    assert seen[0] == 12 and len(seen) == 13
