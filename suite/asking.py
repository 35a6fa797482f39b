"""A checkpoint is asked, and what it says is written down as it comes: what was killed goes on, and ends as it would
have."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from suite import engine, merge, room, run, whole
from suite.engine.positions import config_before_loading, most_of_vllm, positions_of


class Heard(whole.Journal):
    """What a checkpoint has said so far, and the seconds that it took."""

    def __init__(self, path: Path, directory: Path, head: dict):
        super().__init__(path, directory / "results.json", head)
        self.said: dict[str, dict[int, engine.Completion]] = {"greedy": {}, "sampled": {}}
        self.begun = time.monotonic()
        for kind, number, text, tokens, finished, seconds in self.lines:
            self.said[kind][number] = engine.Completion(text, tokens, finished)
            self.begun = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Of this attempt and those before it."""
        return round(time.monotonic() - self.begun, 2)

    def hear(self, kind: str, number: int, said: engine.Completion) -> None:
        self.add([kind, number, said.text, said.tokens, said.finished, self.seconds])
        self.said[kind][number] = said

    def groups(self, kind: str, prompts: int, each: int) -> list[list[engine.Completion]]:
        """The completions of each prompt."""
        return [[self.said[kind][at * each + n] for n in range(each)] for at in range(prompts)]


def require_answerable(names: Sequence[str], prompts: list, keys: engine.EngineArguments, way: str = "") -> None:
    """Raise `ValueError`, before the first of some checkpoints is loaded, for one that has no chat template for these
    prompts, or no position left behind one of them; `way` is the first way out of that."""
    for name in names if prompts else ():
        tokenizer = run.tokenizer(name)
        engine.render(tokenizer, prompts[0])
        room.check_asked(prompts, tokenizer, _end(name, keys), way)


def _end(name: str, keys: engine.EngineArguments) -> int | None:
    """Where the answers of a checkpoint end at the latest, counted as whoever loads it counts; None where only that
    one can."""
    window = keys.vllm_max_model_length if keys.use_vllm else None
    if window is not None:
        return window if window > 0 else None
    config = config_before_loading(merge.base_of(Path(name)) or name)
    if config is None:
        return None
    return most_of_vllm(config) if keys.use_vllm else positions_of(config)


def ask(name: str, asked: dict[str, tuple[list, engine.Sampling]], keys: engine.EngineArguments, heard: Heard) -> None:
    """Have the checkpoint say what is not heard yet. The completions do not depend on where it was interrupted."""
    from tqdm import tqdm

    total, there = sum(len(prompts) for prompts, _ in asked.values()), sum(map(len, heard.said.values()))
    if there:
        print(f"{name}: {there} of {total} completions are there; going on.", flush=True)
    if there == total:
        return
    with closing(engine.load_as_asked(name, keys)) as model:
        for kind, (prompts, sampling) in asked.items():
            done = set(heard.said[kind])
            if len(done) == len(prompts):
                continue
            bar = tqdm(total=len(prompts), initial=len(done), leave=False, desc=f"{Path(name).name}: {kind}")
            with bar:
                for number, said in model.stream(prompts, sampling, done):
                    heard.hear(kind, number, said)
                    bar.update()
