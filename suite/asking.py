"""A checkpoint is asked, and what it says is written down as it comes: what was killed goes on, and ends as it would
have."""

import time
from contextlib import closing
from pathlib import Path

from suite import engine, whole


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
