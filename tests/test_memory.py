"""Freed memory stays with the process: pages touched for the first time are counted, not seconds."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from suite import memory, run
from suite.engine.transformers_engine import TransformersEngine
from tests.conftest import ROOT

COUNT = """
import resource
import torch
from suite import memory

def pages():  # touched anew by eight tensors of 64 MiB and 64 of 1 MiB, one after the other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in [16 << 20] * 8 + [1 << 18] * 64:
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), memory.keep_freed(), end=" ")
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_was_freed_is_not_cleared_again():
    child = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert child.returncode == 0, child.stderr
    before, kept, after = child.stdout.split()
    assert kept == "True"
    assert int(after) < int(before) / 20, child.stdout


def test_without_glibc_nothing_is_said(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed() is False


def test_an_engine_on_a_cpu_keeps_it(miniqwen_dir, monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "keep_freed", lambda: kept.append(True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    TransformersEngine(str(miniqwen_dir))
    assert kept


@pytest.mark.parametrize(("device", "asked"), [("cpu", [True]), ("cuda", [])])
def test_a_training_run_on_a_cpu_keeps_it(monkeypatch, tmp_path, device, asked):
    kept = []
    monkeypatch.setattr(memory, "keep_freed", lambda: kept.append(True))

    class Ended(Exception):
        pass

    def train(**how):
        raise Ended

    accelerator = SimpleNamespace(is_main_process=True, device=SimpleNamespace(type=device))
    trainer = SimpleNamespace(accelerator=accelerator, add_callback=lambda callback: None, train=train)
    config = SimpleNamespace(resume_from_checkpoint=None, output_dir=str(tmp_path))
    with pytest.raises(Ended):
        run._train_and_save(trainer, config, {"config": {"enable_jit_checkpoint": False}})
    assert kept == asked
