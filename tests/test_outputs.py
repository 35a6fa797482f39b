"""prepare, sample, score and evaluate: killed, ended or out of disk at any moment, they go on to the same files."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import HEADS_OF_32, ROOT, save_model
from tests.rows import read_rows, write_rows
from tests.warm import Ended, Halt, Warm, kill_after

pytestmark = pytest.mark.slow

COMMANDS = ("prepare", "sample", "score", "evaluate")
CLOCKS = re.compile(r'"seconds": [\d.]+')


@pytest.fixture(scope="module")
def warm():
    there = Warm()
    yield there
    there.close()


@pytest.fixture(scope="module")
def inputs(miniqwen_dir, tokenizer_dir, arithmetic_dir, tmp_path_factory) -> Path:
    """Two models, rows to ask and rows to score."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    home = tmp_path_factory.mktemp("inputs")
    shutil.copytree(miniqwen_dir, home / "one")
    ends = home / "one/generation_config.json"
    often = {**json.loads(ends.read_text()), "eos_token_id": list(range(20, 60))}  # else it would say nothing whole
    ends.write_text(json.dumps(often))
    save_model(Qwen2ForCausalLM, Qwen2Config, tokenizer_dir, home / "two")
    shutil.copytree(arithmetic_dir, home / "data")
    rng = random.Random(0)
    said = [f"<think>\n{n}\n</think>\n<answer>{rng.randint(n, n + 1)}</answer>" for n in range(1500)]
    rows = [{"prompt": f"{n}", "completion": text, "solution": str(n)} for n, text in enumerate(said)]
    write_rows(home / "rows.jsonl", rows)
    return home


def words(command: str, inputs: Path) -> list:
    asking = ["--dataset_name", inputs / "data", "--max_completion_length", 8, "--per_device_eval_batch_size", 8]
    asking += ["--dtype", "float32", "--output_dir", "out"]
    return {
        "prepare": ["prepare", "arithmetic", "--size", 2500, "--test_size", 300, "--output_dir", "out"],
        "sample": ["sample", "--model_name_or_path", inputs / "one", *asking, "--max_rows", 24,
                   "--reward_funcs", "tests.test_outputs.any_reward"],
        "score": ["score", inputs / "rows.jsonl", "--reward_funcs", "accuracy", "format", "--output_file", "out.jsonl"],
        "evaluate": ["evaluate", "--checkpoints", inputs / "one", inputs / "two", *asking, "--max_rows", 12,
                     "--num_generations", 2],
    }[command]  # fmt: skip


def any_reward(completions, **columns):
    """Something that differs, so that it shows whether each answer keeps its own."""
    return [1.0 + len(said[0]["content"]) for said in completions]


def older(command: str, inputs: Path) -> list | None:
    """What writes the output that the command replaces; score replaces none."""
    said = [str(word) for word in words(command, inputs)]
    changed = {"prepare": ("2500", "50"), "sample": ("24", "2"), "evaluate": ("12", "3"), "score": None}[command]
    return changed and [changed[1] if word == changed[0] else word for word in said]


def contents(home: Path) -> dict[str, bytes | str]:
    """Every file by its path. Clock times are left out, and in sample.json and results.json nothing else is."""
    found = {}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        data = path.read_bytes()
        found[str(path.relative_to(home))] = CLOCKS.sub("", data.decode()) if path.suffix == ".json" else data
    return found


def visible(there: dict) -> dict:
    return {name: data for name, data in there.items() if not any(part.startswith(".") for part in Path(name).parts)}


class Trial:
    """One command: its output before and after, and what may be seen in between."""

    def __init__(self, command: str, inputs: Path, warm: Warm, home: Path):
        self.command, self.words, self.warm, self.home = command, words(command, inputs), warm, home
        (home / "before").mkdir(parents=True)
        if older(command, inputs) is not None:
            done = warm.run(older(command, inputs), home / "before")
            assert done.code == 0, done.said
        self.before = contents(home / "before")
        shutil.copytree(home / "before", home / "straight")
        self.straight = warm.run(self.words, home / "straight")
        assert self.straight.code == 0, self.straight.said
        self.after = contents(home / "straight")
        assert self.after != self.before

    def place(self, name: str) -> Path:
        return Path(shutil.copytree(self.home / "before", self.home / name))

    def look(self, place: Path) -> str:
        """Which output there is: the old one or the new one, and nothing else."""
        there = visible(contents(place))
        if self.command == "evaluate":
            return self._look_at_results(place, there)
        assert there in (self.before, self.after), (sorted(there), self.command)
        return "new" if there == self.after else "old"

    def _look_at_results(self, place: Path, there: dict) -> str:
        """A checkpoint's result is the old one or the new one, and has its rows."""
        of = {}
        for which, files in (("old", self.before), ("new", self.after), ("there", there)):
            assert sorted(files) == ["out/results.json", "out/rows.jsonl"]
            rows = [json.loads(line) for line in files["out/rows.jsonl"].decode().split("\n") if line]
            results = json.loads(re.sub(r",\s*(?=[,}])", "", files["out/results.json"]))
            of[which] = {
                r["checkpoint"]: (r, [row for row in rows if row["identity"] == r["identity"]]) for r in results
            }
        for name, found in of["there"].items():
            assert found in (of["old"][name], of["new"][name])
        return "new" if there == self.after else "old"

    def goes_on(self, place: Path) -> Ended:
        """The same command, to the end that it would have had, and nothing is left lying about."""
        done = self.warm.run(self.words, place)
        if self.command == "score" and done.code == 2:  # it was killed behind its last step
            assert "exists. Name another place" in done.said
        else:
            assert done.code == 0, done.said
        assert contents(place) == self.after
        return done


@pytest.fixture(scope="module")
def trials(inputs, warm, tmp_path_factory):
    """Command -> its trial, made once."""
    made: dict[str, Trial] = {}

    def of(command: str) -> Trial:
        if command not in made:
            made[command] = Trial(command, inputs, warm, tmp_path_factory.mktemp(command))
        return made[command]

    return of


def kill(trial: Trial, number: int, rng: random.Random) -> str:
    """Kill at a random moment, every second time at a random call to the file system, and go on; what was seen."""
    code, seconds = 0, trial.straight.seconds
    while code == 0:  # it was faster than the kill
        place = trial.place(f"kill-{number}")
        if number % 2:
            how = {"die_at": rng.randint(1, trial.straight.steps), "after": rng.random() < 0.5}
        else:
            how = {"meanwhile": kill_after(rng.uniform(0, seconds))}
        ended = trial.warm.run(trial.words, place, **how)
        code, seconds = ended.code, min(seconds, ended.seconds)
        seen = trial.look(place)
        going_on = trial.goes_on(place)
        shutil.rmtree(place)
    assert code == -signal.SIGKILL, ended.said
    if seen == "new":
        return "the new output was there, and reused"
    took_over = re.search(r"[Gg]oing on|asking for (?!88)", going_on.said)  # 88: all that sample has to ask
    return f"the old output was there, and the next attempt {'went on' if took_over else 'began at the beginning'}"


@pytest.mark.parametrize("command", COMMANDS)
def test_three_kills(trials, command):
    for number in range(3):
        kill(trials(command), number, random.Random(f"{command}/{number}"))


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_thirty_kills_more(trials, command, capsys):
    trial, seen = trials(command), Counter()
    for number in range(3, 33):
        seen[kill(trial, number, random.Random(f"{command}/{number}"))] += 1
    with capsys.disabled():
        print(f"\n{command}: {seen.total()} kills")
        for what, times in seen.most_common():
            print(f"  {times:3d}  {what}")


# Where a command notes what is done; each has one when it is half-way.
JOURNALS = {"prepare": ".out.journal", "sample": ".out.partial/answers.jsonl", "score": ".out.jsonl.journal",
            "evaluate": "out/.*.journal"}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_told_to_end_says_so_in_one_line_and_goes_on(trials, command, number):
    trial = trials(command)
    place = trial.place(f"signal-{number}")
    there = trial.before.get("out/answers.jsonl", b"").count(b"\n")  # sample's journal holds the old answers
    half_way = Halt(str(place / JOURNALS[command]), lines=there + 2)
    ended = trial.warm.run(trial.words, place, halt=half_way, meanwhile=kill_after(0, number))
    assert ended.code == 128 + number, ended.said
    word = "ended by SIGTERM" if number == signal.SIGTERM else "interrupted"
    assert re.search(rf"^suite: {word}\. .*the same command", ended.said.splitlines()[-1]), ended.said
    assert "Traceback" not in ended.said
    assert trial.look(place) == "old"
    assert re.search(r"[Gg]oing on|are there", trial.goes_on(place).said)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(trials, command):
    """No file may grow beyond a size: once the journal cannot, once the output, or part of it."""
    trial = trials(command)
    largest = max(len(data) for data in trial.after.values())
    for share in (0.02, 0.3, 0.9):
        place = trial.place(f"full-{share}")
        ended = trial.warm.run(trial.words, place, limit=int(share * largest))
        assert ended.code == 2, (share, ended.said)
        line = ended.said.strip().splitlines()[-1]
        assert re.search(r"suite: Cannot write out\S*: File too large\. What was there before is untouched\.", line)
        assert "Traceback" not in ended.said and ".partial" not in line
        assert trial.look(place) == "old"
        trial.goes_on(place)


@contextlib.contextmanager
def small_disk(place: Path, size: int):
    """A file system of its own, that is soon full."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no small disk here, only limits on the size of files: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_a_small_disk_holds_the_old_output_until_there_is_room_for_the_new_one(trials, command, capsys):
    trial, seen = trials(command), []
    size = 8192 + 4096 * sum(2 + len(data) // 4096 for data in trial.before.values())
    for number in range(40):
        place = trial.home / f"disk-{number}"
        with small_disk(place, size):
            shutil.copytree(trial.home / "before", place, dirs_exist_ok=True)
            ended = trial.warm.run(trial.words, place)
            what = trial.look(place)
            assert (ended.code, what) in ((0, "new"), (2, "old")), ended.said
            if ended.code == 2:
                line = ended.said.strip().splitlines()[-1]
                assert re.search(r"Cannot write out\S*: No space left on device\. What was there before is unt", line)
                assert "Traceback" not in ended.said
            else:
                assert contents(place) == trial.after
        seen.append(f"{size // 1024} KiB: {what}")
        if ended.code == 0:
            break
        size = int(1.3 * size)
    with capsys.disabled():
        print(f"\n{command}: {', '.join(seen)}")
    assert what == "new" and len(seen) > 1


def test_an_output_that_is_there_is_reused_and_not_what_was_there_before(trials):
    """What the trials above rest on: the two differ, and a command that replaces the one leaves just the other."""
    reused = {
        "prepare": ("holds these very rows already", 1),
        "sample": ("holds these very answers already", 1),
        "score": ("exists. Name another place", 1),
        "evaluate": ("was already evaluated this way", 2),
    }
    for command, (told, times) in reused.items():
        trial = trials(command)
        assert trial.warm.run(trial.words, trial.home / "straight").said.count(told) == times
        assert trial.after == contents(trial.home / "straight") != trial.before
    assert len(read_rows(trials("prepare").home / "straight/out/train.parquet")) == 2500
    assert len(trials("sample").after["out/answers.jsonl"].splitlines()) == 96


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here")
def test_vllm_does_not_outlive_a_command_that_was_killed(tokenizer_dir, tmp_path):
    """Left alone it would generate on, to nobody, in the memory that the next attempt needs."""
    import psutil
    from transformers import Qwen2Config, Qwen2ForCausalLM

    save_model(Qwen2ForCausalLM, Qwen2Config, tokenizer_dir, tmp_path / "model", **HEADS_OF_32)
    write_rows(tmp_path / "rows/train.parquet", [{"prompt": f"{n}+1", "solution": str(n + 1)} for n in range(3000)])
    asking = ["sample", "--model_name_or_path", "model", "--dataset_name", "rows", "--output_dir", "out"]
    asking += ["--use_vllm", "true", "--vllm_max_model_length", "256", "--max_completion_length", "200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "suite.cli", *asking],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    answers, until = Path(".out.partial/answers.jsonl"), time.monotonic() + 600
    while not (answers.is_file() and answers.read_bytes().count(b"\n") > 5):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for left in alive:
        left.kill()
    assert not alive
