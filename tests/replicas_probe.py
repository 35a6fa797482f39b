"""What two vLLM engines say together, in a process of its own: `python -m tests.replicas_probe DIRECTORY PROMPTS.json`.

Prints lines of JSON, each with its name: the greedy completions, the sampled ones, those of an asking that was broken
off and went on, how a prompt without room is refused, and what the death of one engine is. Then it sleeps, with the
other in its hands, until it is killed.
"""

import json
import os
import signal
import sys
import time
from dataclasses import astuple
from pathlib import Path

from suite import engine
from suite.engine import Sampling

GREEDY, SAMPLED = Sampling(max_new_tokens=48), Sampling(max_new_tokens=24, temperature=1.0, seed=5)


def tell(name: str, what) -> None:
    print(name, json.dumps(what), flush=True)


def told(completions: dict) -> dict:
    return {number: astuple(said) for number, said in sorted(completions.items())}


def main() -> None:
    directory, prompts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    model = engine.load(directory, use_vllm=True, replicas=2, max_model_len=128, max_num_seqs=16)
    tell("greedy", told(dict(model.stream(prompts, GREEDY))))
    tell("sampled", told(dict(model.stream(prompts, SAMPLED))))
    answers = model.stream(prompts, SAMPLED)
    first = next(answers)
    tell("loads", [member.load for member in model.replicas.members])
    answers.close()
    tell("rest", told(dict(model.stream(prompts, SAMPLED, {first[0]}))))
    tell("first", told(dict([first])))
    try:
        next(model.stream(["x" * model.replicas.positions], GREEDY))
    except ValueError as error:
        tell("refused", str(error))
    try:
        for _ in model.stream(prompts, SAMPLED):
            os.kill(model.replicas.members[1].process.pid, signal.SIGKILL)
    except ValueError as error:
        tell("died", str(error))
    time.sleep(600)


if __name__ == "__main__":
    main()
