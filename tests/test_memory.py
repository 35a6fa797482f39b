"""Freed memory stays with the process: pages touched for the first time are counted, not seconds."""

import platform
import subprocess
import sys

import pytest

from suite import memory
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
