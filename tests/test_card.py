"""The model card: true to what lies on disk, valid where the Hub reads it, and silent on secrets and this machine."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from suite import card, checkpoint, hub, metrics, report
from tests.conftest import write_yaml

COMMIT, ROWS_COMMIT = "a" * 40, "b" * 40
VERSIONS = {"torch": "2.13.0", "trl": "1.16.0"}
FACTS = {
    "seeds": {"seed": 42, "data_seed": None},
    "hardware": "2 cores of a machine, no GPU",
    "engine": "one process",
    "python": "3.11.7",
    "parameters": {"all": 27552, "trained": 27552},
}


def data(directory: str = "data/sums", **more) -> str:
    Path(directory).mkdir(parents=True)
    count = {"rows": 90, "read": 100, "dropped": {"empty": 10}, "first": {}}
    settings = {"name": "arithmetic", "digits": 2}
    told = {"identity": "1", "settings": settings, "splits": {"train": count, "test": {**count, "rows": 20}}, **more}
    (Path(directory) / "prepare.json").write_text(json.dumps(told))
    (Path(directory) / "train.parquet").write_bytes(b"rows")
    return directory


def lay(directory: str, config: dict, stage: str = "sft", *, weights: bytes = b"w", **more) -> Path:
    """A finished run as it lies there."""
    path = Path(directory)
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "miniqwen"}')
    (path / "model.safetensors").write_bytes(weights)
    inputs = {name: checkpoint.fingerprint(name) for key, name in config.items() if key.endswith(("_path", "_name"))}
    told = {"stage": stage, "config": config, "inputs": inputs, "processes": 1, "versions": VERSIONS, "pins": [],
            "rows": {"train": 90}, "started": 1.8e9, "finished": True, "seconds": 3725.0, "steps": 12,
            "facts": FACTS, **more}  # fmt: skip
    (path / "run.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    history = [{"step": step, "loss": 1 / step, "grad_norm": 0.1} for step in range(1, 13)]
    (path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return path


def evaluated(directory: str, rights: dict[str, int], n: int = 20) -> None:
    """results.json and rows.jsonl as `suite evaluate` leaves them, with so many right by each checkpoint."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    results, lines = [], []
    for name, right in rights.items():
        scores = [1.0] * right + [0.0] * (n - right)
        rate, tokens = metrics.rate(scores), metrics.mean([5.0] * n)
        measured = {"accuracy": rate, "strict": rate, "lenient": rate, "format": rate, "truncated": rate,
                    "tokens": tokens, "pass@2": metrics.mean(scores), "pass@10": metrics.mean(scores)}  # fmt: skip
        which = {"stage": Path(name).name, "checkpoint": name, "fingerprint": checkpoint.fingerprint(name)}
        aim = {"metric": "accuracy", "before": None, "after": rate["value"], "ci95": rate["ci95"], "n": n}
        results.append({**which, "dataset": "data/sums", **aim, "seconds": 1.0, "metrics": measured})
        lines += [
            {**which, "row": i, "kind": "greedy", "prompt": f"{i}+1", "solution": str(i + 1), "accuracy": score,
             "completion": f"{name} says {i}"} for i, score in enumerate(scores)
        ]  # fmt: skip
    (Path(directory) / "results.json").write_text(json.dumps(results))
    (Path(directory) / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def written(directory, *args, **how) -> str:
    assert card.write(directory, *args, **how) == Path(directory) / "README.md"
    return (Path(directory) / "README.md").read_text()


def front_matter(directory) -> dict:
    """As the Hub's own client reads it."""
    from huggingface_hub import ModelCard, metadata_load

    loaded = ModelCard.load(Path(directory) / "README.md")
    assert loaded.data.to_dict() == metadata_load(Path(directory) / "README.md")
    return loaded.data.to_dict()


def section(text: str, heading: str) -> str:
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_a_card_tells_what_the_run_was_made_from_and_how_it_went():
    lay("runs/base", {"tokenizer_name_or_path": "runs/tokenizer"}, "pretrain")
    config = {"model_name_or_path": "runs/base", "dataset_name": data(), "learning_rate": 1e-3, "output_router": None}
    run = lay("runs/sft", config)
    text = written(run)
    assert "A model made from `runs/base` by `suite sft`: 12 steps in 1 h 2 min." in text
    made_from = section(text, "What it was made from")
    assert f"| model | `runs/base` | fingerprint `{checkpoint.fingerprint('runs/base')}` |" in made_from
    assert f"`data/sums` | fingerprint `{checkpoint.fingerprint('data/sums')}` | train: 90 kept of 100" in made_from
    assert "| rows read |  |  | 90 train |" in made_from
    the_run = section(text, "The run")
    for fact in ("2027-01-15 08:00 UTC", "seed 42 |", "27,552", "2 cores of a machine", "python 3.11.7, torch 2.13.0"):
        assert fact in the_run
    assert yaml.safe_load(the_run.partition("```yaml\n")[2].partition("```")[0]) == config
    assert "![What was logged, by step](curves.png)" in section(text, "Curves")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_front_matter_names_the_base_only_where_it_is_on_the_hub():
    hub_run = lay("runs/sft", {"model_name_or_path": "Qwen/Qwen2.5-0.5B", "dataset_name": data()})
    written(hub_run)
    assert front_matter(hub_run) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qwen-suite", "trl", "sft"],
    }
    after = lay("runs/grpo", {"model_name_or_path": "runs/sft"}, "grpo")
    written(after)
    assert front_matter(after)["base_model"] == "Qwen/Qwen2.5-0.5B"  # by way of a directory here
    adapter = lay("runs/lora", {"model_name_or_path": "runs/sft"})
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    written(adapter)
    told = front_matter(adapter)  # which needs runs/sft, and nobody on the Hub has that
    assert told["library_name"] == "peft" and "base_model" not in told
    scratch = lay("runs/pretrain", {"dataset_name": "data/sums"}, "pretrain")
    assert "made from nothing" in written(scratch) and "base_model" not in front_matter(scratch)
    lay("models/base", {}, "pretrain")
    last = lay("runs/last", {"model_name_or_path": "models/base"})
    shutil.rmtree("models")
    assert "made from `models/base`" in written(last) and "base_model" not in front_matter(last)


def test_front_matter_names_data_sets_of_the_hub_and_a_license_that_is_known():
    pinned = [{"kind": "dataset", "name": "me/rows", "revision": "main", "commit": ROWS_COMMIT}]
    read = {"name": "openai/gsm8k", "revision": "main", "commit": COMMIT}
    base = lay("runs/base", {"dataset_name": data()}, "pretrain")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# mine\n")
    config = {"model_name_or_path": "runs/base", "dataset_name": data("data/gsm8k", source=read)}
    run = lay("runs/sft", config, pins=pinned)
    text = written(run)
    assert front_matter(run)["datasets"] == ["me/rows", "openai/gsm8k"]
    assert front_matter(run)["license"] == "apache-2.0"
    assert f"source: openai/gsm8k@{COMMIT}" in section(text, "To repeat it")


def test_what_was_read_from_the_hub_is_told_and_repeated_at_its_commit():
    pinned = [
        {"kind": "model", "name": "Qwen/Qwen2.5-0.5B", "revision": "main", "commit": COMMIT},
        {"kind": "dataset", "name": "me/rows", "revision": "v1", "commit": ROWS_COMMIT},
        {"kind": "dataset", "name": "me/more", "revision": "main", "commit": COMMIT},
    ]
    parts = [{"path": "me/more", "name": None}, {"path": "data/sums", "split": "train"}]
    config = {"model_name_or_path": "Qwen/Qwen2.5-0.5B", "dataset_name": "me/rows@v1", "datasets": parts}
    text = written(lay("runs/sft", config, pins=pinned))
    assert f"[Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/Qwen2.5-0.5B) at `{COMMIT[:12]}`" in text
    assert f"| data | `me/rows` | v1 = `{ROWS_COMMIT}` |" in text
    again = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert again == {
        "model_name_or_path": "Qwen/Qwen2.5-0.5B",
        "dataset_name": f"me/rows@{ROWS_COMMIT}",
        "datasets": [{"path": f"me/more@{COMMIT}"}, {"path": "data/sums", "split": "train"}],
        "model_revision": COMMIT,
    }


def test_a_teacher_a_judge_and_data_that_nobody_prepared_are_told_apart():
    Path("texts").mkdir()
    Path("texts/a.jsonl").write_text("{}")
    config = {"teacher_model_name_or_path": "me/teacher", "reward_funcs": ["format", "me/judge"]}
    inputs = {"me/teacher": "me/teacher", "texts": checkpoint.fingerprint("texts"), "me/judge": "me/judge"}
    text = written(lay("runs/grpo", config, "grpo", inputs=inputs, rows={"train": None}))
    made_from = [line.split(" | ")[:2] for line in section(text, "What it was made from").splitlines()]
    assert made_from[3:6] == [["| teacher", "`me/teacher`"], ["| data", "`texts`"], ["| reward model", "`me/judge`"]]
    assert "not counted (a stream) train" in text


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"stage": "sft"}'])
def test_what_lies_around_and_is_broken_costs_nobody_a_card(broken):
    base = lay("runs/base", {"dataset_name": data()}, "pretrain")
    (base / "run.json").write_text(broken)
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    Path("data/sums/prepare.json").write_text(broken)
    run = lay("runs/sft", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"})
    assert "made from `runs/base`" in written(run) and "license" not in front_matter(run)
    assert card.write(base) is None


def test_what_it_takes_to_repeat_a_run_can_be_read_as_it_stands():
    from suite import args
    from suite.prepare import arguments
    from suite.train import sft

    run = lay("runs/sft", {"model_name_or_path": "me/model", "dataset_name": data()}, processes=2,
              facts={**FACTS, "engine": "zero3"})  # fmt: skip
    text = section(written(run), "To repeat it")
    launch = "--launch accelerate_configs/zero3.yaml --num_processes 2"
    assert f"suite sft --config repeat.yaml --output_dir runs/repeat {launch}" in text
    Path("prepare.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert args.parse(arguments("arithmetic"), ["--config", "prepare.yaml"])[0].output_dir == "data/sums"
    config = section((run / "README.md").read_text(), "The run").partition("```yaml\n")[2].partition("```")[0]
    written_out = {**yaml.safe_load(config), "output_dir": "runs/repeat", "use_cpu": True, "bf16": False}
    read = args.parse(sft.arguments(), ["--config", str(write_yaml(Path("repeat.yaml"), **written_out))])
    assert read[0].dataset_name == "data/sums"


def test_before_and_after_have_n_and_intervals_and_three_completions():
    lay("runs/base", {"dataset_name": data()}, "pretrain")
    run = lay("runs/sft", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"}, weights=b"other")
    lay("runs/aside", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"}, weights=b"third")
    evaluated("runs/compare", {"runs/aside": 20, "runs/sft": 15, "runs/base": 2})
    text = written(run)
    measured = section(text, "Before and after")
    assert "|  | base | sft | n |" in measured and "aside" not in measured
    assert "| accuracy, % | 10.0 [2.8, 30.1] | 75.0 [53.1, 88.8] | 20 |" in measured
    rows = [line.split(" | ")[0] for line in measured.splitlines()]
    assert rows.index("| pass@2, %") + 1 == rows.index("| pass@10, %") and "| tokens a completion" in rows
    assert "On `data/sums`" in measured and (run / "before-after.png").is_file()
    said = section(text, "Completions")
    assert said.count("(gold: ") == 3 and said.count("base, wrong:") == 3 and said.count("sft, right:") == 3
    assert "```text\nruns/sft says 2\n```" in said and said.index("base, ") < said.index("sft, ")


def test_a_before_that_was_measured_on_other_rows_is_none():
    lay("runs/base", {"dataset_name": data()}, "pretrain")
    run = lay("runs/sft", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"}, weights=b"other")
    evaluated("runs", {"runs/sft": 15, "runs/base": 2})
    results = json.loads(Path("runs/results.json").read_text())
    for result, conditions in zip(results, ("these rows", "other rows"), strict=True):
        result["conditions"] = conditions
    Path("runs/results.json").write_text(json.dumps(results))
    text = written(run)
    assert "|  | sft | n |" in section(text, "Before and after") and "base, wrong" not in section(text, "Completions")


def test_what_texts_were_measured_by_needs_no_answers():
    run = lay("runs/pretrain", {"dataset_name": data()}, "pretrain")
    evaluated("runs", {"runs/pretrain": 15})
    results = json.loads(Path("runs/results.json").read_text())
    results[0]["metrics"] = {"pass@2": results[0]["metrics"]["pass@2"]}
    Path("runs/results.json").write_text(json.dumps(results))
    Path("runs/rows.jsonl").unlink()
    measured = section(written(run), "Before and after")
    assert "| pass@2, % |" in measured and "greedy" not in measured and "before-after.png" not in measured


def test_what_was_not_measured_is_said_with_the_way_to_it():
    run = lay("runs/sft", {"model_name_or_path": "me/base", "dataset_name": data()})
    text = written(run)
    assert (
        "Not measured yet" in text and "suite evaluate --checkpoints me/base runs/sft --dataset_name data/sums" in text
    )
    assert "None to show" in section(text, "Completions") and not (run / "before-after.png").exists()
    evaluated("runs", {"runs/sft": 15})
    assert "What was before is not in that evaluation" in written(run)


def test_numbers_of_files_that_have_changed_since_are_not_shown():
    run = lay("runs/sft", {"dataset_name": data()})
    evaluated("runs", {"runs/sft": 15})
    assert "75.0" in written(run) and (run / "before-after.png").is_file()
    (run / "model.safetensors").write_bytes(b"trained anew")
    assert "Not measured yet" in written(run) and not (run / "before-after.png").exists()


def test_numbers_of_another_commit_of_the_base_are_not_shown():
    pinned = [{"kind": "model", "name": "me/base", "revision": "main", "commit": COMMIT}]
    run = lay("runs/sft", {"model_name_or_path": "me/base", "dataset_name": data()}, pins=pinned)
    evaluated("runs", {"me/base": 2, "runs/sft": 15})
    results = json.loads(Path("runs/results.json").read_text())
    for commit, told in ((COMMIT, "|  | base | sft | n |"), (ROWS_COMMIT, "|  | sft | n |")):
        results[0]["fingerprint"] = f"me/base@{commit}"
        Path("runs/results.json").write_text(json.dumps(results))
        assert told in written(run)


@pytest.mark.parametrize("foreign", ["{", "{}", "[1]", '[{"checkpoint": "runs/sft"}]', '[{"f1": 0.5}]'])
def test_a_results_file_of_somebody_else_is_passed_by(foreign):
    run = lay("runs/sft", {"dataset_name": data()})
    Path("runs/results.json").write_text(foreign)
    assert "Not measured yet" in written(run)


def test_completions_come_from_what_grpo_logged_where_nothing_was_evaluated():
    import pyarrow
    import pyarrow.parquet

    run = lay("runs/grpo", {"dataset_name": data()}, "grpo")
    (run / "completions").mkdir()
    for step in (5, 10):
        row = {"step": step, "prompt": [{"role": "user", "content": "1 < 2 *now*"}], "completion": f"at ```{step}```",
               "accuracy_reward": 0.5, "advantage": 0.1}  # fmt: skip
        path = run / "completions" / f"completions_{step:05d}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 4), path)
    said = section(written(run), "Completions")
    assert said.count("````text\nat ```10```\n````") == 3
    assert r"1 \< 2 \*now\*" in said and "(step 10: accuracy_reward 0.5)" in said


def test_a_card_has_no_secret_and_no_path_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    outside, inside = tmp_path.parent / "elsewhere" / "deep" / "base", tmp_path / "data" / "sums"
    lay(str(outside), {}, "pretrain")
    data()
    config = {
        "model_name_or_path": str(outside),
        "dataset_name": str(inside),
        "model_init_kwargs": {"cache_dir": "/scratch/somebody/cache/models"},
        "run_name": "0123456789abcdef",
        "vllm_server_base_url": "http://user:pass@host:8000/v1/models",
        "system": "1/2 and 3/4, <think></think><answer></answer>, hf_zyxwvutsrqponmlkjihgfedcba",
    }
    text = written(lay(str(tmp_path / "runs" / "sft"), config))
    for hidden in (str(tmp_path), str(tmp_path.parent), "somebody", "hf_", "0123456789abcdef", "user:pass"):
        assert hidden not in text, hidden
    assert ".../deep/base" in text and "dataset_name: data/sums" in text and ".../cache/models" in text
    assert "http://[secret]@host:8000/v1/models" in text and "<think></think><answer></answer>" in text


def test_a_card_somebody_wrote_stays_and_those_of_trl_and_peft_go():
    run = lay("runs/sft", {"dataset_name": data()})
    (run / "README.md").write_text("# My own words\n")
    assert card.write(run) is None and (run / "README.md").read_text() == "# My own words\n"
    for theirs in card._THEIRS:
        (run / "README.md").write_text(f"---\nbase_model: /home/me/runs/base\n---\n{theirs}\n")
        assert "/home/me" not in written(run)
    assert written(run) == written(run)
    assert card.write("data/sums") is None and card.write("nowhere") is None and card.write("Qwen/Qwen2.5-0.5B") is None


def test_the_card_of_a_model_that_may_only_be_read_stays_as_it_is(monkeypatch, capsys):
    run = lay("runs/sft", {"dataset_name": data()})
    before = written(run)
    evaluated("runs", {"runs/sft": 15})
    monkeypatch.setattr("os.access", lambda path, mode: False)  # who runs the tests may be root, and write anywhere
    assert card.write(run) is None and (run / "README.md").read_text() == before
    assert "runs/sft/README.md stays as it is" in capsys.readouterr().out


def test_the_card_of_an_export_knows_its_run_and_is_written_anew_without_being_told(tmp_path):
    lay("runs/base", {"dataset_name": data()}, "pretrain")
    run = lay("runs/sft", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"}, weights=b"other")
    Path("out").mkdir()
    shutil.copytree(run, "out/merged", ignore=shutil.ignore_patterns("run.json", "trainer_state.json"))
    config = {"model_type": "qwen2_moe", "num_experts": 8, "dtype": "bfloat16"}
    Path("out/merged/config.json").write_text(json.dumps(config))
    text = written("out/merged", run)
    assert (
        text.startswith("---\n")
        and "# merged" in text
        and "12 steps" in text
        and Path("out/merged/curves.png").is_file()
    )
    assert "by `suite sft` and exported as qwen2_moe of 8 experts, its weights in bfloat16: 12 steps" in text
    assert "exported" not in written(run) and "Not measured yet" in text
    evaluated("out/results", {"out/merged": 12, "runs/sft": 15, "runs/base": 2})
    again = written("out/merged")
    assert "|  | base | sft | merged | n |" in again and "60.0 [38.7, 78.1]" in again
    assert str(tmp_path) not in again


def test_a_checkpoint_says_at_which_step_it_stood_and_a_run_that_it_is_not_finished():
    run = lay("runs/sft", {"dataset_name": data()})
    told = json.loads((run / "run.json").read_text())
    unfinished = {key: told[key] for key in ("stage", "config", "inputs", "processes", "versions", "rows")}
    step = run / "checkpoint-5"
    step.mkdir()
    (step / "run.json").write_text(json.dumps({**unfinished, "step": 5, "spent": 61.0}))
    (step / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 5, "loss": 1.0}]}))
    (run / "trainer_state.json").unlink()
    (run / "run.json").write_text(json.dumps({**unfinished, "started": 1.8e9}))
    assert "as it stood at step 5, after 1 min 1 s." in written(step, pictures=False)
    assert not (step / "curves.png").exists()
    text = written(run)
    assert "**The run is not finished**" in text and (run / "curves.png").is_file()
    assert "suite sft --config repeat.yaml" in text


def test_the_card_of_a_tokenizer_speaks_of_no_model():
    text = written(lay("runs/tokenizer", {"dataset_name": data()}, "tokenizer", steps=None, rows={}))
    assert "A tokenizer learned from text by `suite tokenizer`" in text and "evaluate" not in text
    assert "pipeline_tag" not in front_matter("runs/tokenizer")


def test_a_push_takes_the_card_and_its_pictures_along_and_not_the_record():
    run = lay("runs/sft", {"dataset_name": data()})
    evaluated("runs", {"runs/sft": 15})
    written(run)
    assert {"README.md", "curves.png", "before-after.png"} <= set(hub.files_of(run))
    assert not {"run.json", "trainer_state.json"} & set(hub.files_of(run))


def test_a_report_writes_the_cards_of_its_runs_anew(capsys):
    lay("runs/base", {"dataset_name": data()}, "pretrain")
    run = lay("runs/sft", {"model_name_or_path": "runs/base", "dataset_name": "data/sums"}, weights=b"other")
    evaluated("runs", {"runs/base": 2, "runs/sft": 15})
    report.main(["runs"])
    assert "75.0 [53.1, 88.8]" in (run / "README.md").read_text() and Path("runs/base/README.md").is_file()
    page = Path("runs/report.html").read_text()
    assert "75.0 [53.1, 88.8]" in page and "runs/sft says" in page
    assert "75.0 [53.1, 88.8]" in capsys.readouterr().out
