"""What leaves the suite is a plain directory: stock transformers loads it, and it answers as before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process in which nobody installed the suite, however the one that runs the tests came by it.
WITHOUT_SUITE = """
import importlib.util, os, sys
sys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p or ".", "suite"))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("suite") is None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
"""


def in_a_process_without_suite(code: str, cwd: Path, **env) -> str:
    """What `code` prints there."""
    env = {**os.environ, "HF_MODULES_CACHE": str(cwd / "modules"), **env}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SUITE + code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IDS = [[1, 2, 3, 40, 50, 60]]


def logits_of(path):
    """(B, T, V) of a few tokens, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype="float32")(torch.tensor(IDS)).logits


@pytest.mark.slow
def test_a_miniqwen_brings_its_code_and_needs_no_suite(miniqwen_dir, tmp_path):
    import torch

    torch.save(logits_of(miniqwen_dir), tmp_path / "ours.pt")
    code = f"""
model = AutoModelForCausalLM.from_pretrained({str(miniqwen_dir)!r}, trust_remote_code=True)
assert model(torch.tensor({IDS})).logits.equal(torch.load("ours.pt"))
ids = AutoTokenizer.from_pretrained({str(miniqwen_dir)!r}, trust_remote_code=True)("2+2", return_tensors="pt")
assert model.generate(**ids, max_new_tokens=4).shape[1] > ids.input_ids.shape[1]
model.save_pretrained("again")
print(type(model).__module__.split(".")[0])
AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
"""
    assert in_a_process_without_suite(code, tmp_path).split()[-1] == "transformers_modules"
