"""What vLLM says to prompts, greedily, in a process of its own: `python -m tests.vllm_probe DIRECTORY PROMPTS.json`.

Prints one line of JSON, the token ids of each answer.
"""

import json
import os
import sys
from pathlib import Path

from suite import engine
from suite.engine.vllm_engine import VllmEngine


def answers(served: VllmEngine, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """The ids of a greedy answer to each prompt, as `complete` would ask for them."""
    inputs = [{"prompt_token_ids": ids} for ids in engine.rendered(served.tokenizer, prompts)]
    params = served._params(engine.Sampling(max_new_tokens=max_new_tokens), 0)
    said = served.llm.generate(inputs, params, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in said]


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    prompts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    loaded = engine.load(sys.argv[1], use_vllm=True, dtype="float32", max_model_len=128, max_num_seqs=16)
    print("ids", json.dumps(answers(loaded, prompts, 32)))
