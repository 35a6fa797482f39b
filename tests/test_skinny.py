"""The kernel for a few rows multiplies as torch does, and where it cannot be had, generation goes on without it."""

import re

import pytest
import torch
import torch.nn.functional as F

from suite.model import MiniQwenForCausalLM, skinny
from suite.model import generation as road

HERE = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in skinny.INSTRUCTIONS, reason="a kernel for x86-64 with AVX2 or more"
)


@pytest.fixture
def anew():
    """A kernel is looked for again, here and in the next test."""
    skinny.kernel.cache_clear()
    yield
    skinny.kernel.cache_clear()


@HERE
def test_there_is_a_kernel():
    assert skinny.kernel() is not None, "These tests, and torch.compile, need a C compiler: apt-get install gcc"


@HERE
@pytest.mark.parametrize("rows", range(1, skinny.ROWS + 1))
def test_the_product_is_that_of_torch(rows):
    torch.manual_seed(rows)
    for out, width in ((2, 16), (6, 48), (250, 64), (512, 1408)):
        x, weight, bias = torch.randn(rows, width), torch.randn(out, width), torch.randn(out)
        assert skinny.fits(rows, weight)
        for each in (None, bias):
            torch.testing.assert_close(skinny.skinny_product(weight, each)(x), F.linear(x, weight, each), **near(width))


def near(width: int) -> dict:
    """Sums of `width` random products, in another order."""
    return {"atol": 1e-6 * width, "rtol": 1e-5}


@HERE
@pytest.mark.parametrize("threads", [1, 3, 5])
def test_threads_share_the_rows_of_the_weight_whatever_their_number(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = torch.randn(3, 32), torch.randn(14, 32)
        torch.testing.assert_close(skinny.skinny_product(weight)(x), F.linear(x, weight), **near(32))
    finally:
        torch.set_num_threads(before)


@HERE
def test_what_a_row_becomes_does_not_hang_on_the_rows_beside_it():
    x, weight = torch.randn(skinny.ROWS, 96), torch.randn(20, 96)
    together = skinny.skinny_product(weight)(x)
    assert torch.equal(together, torch.cat([skinny.skinny_product(weight)(row[None]) for row in x]))


@HERE
def test_weights_changed_in_place_count_at_once():
    x, weight = torch.randn(2, 16), torch.zeros(4, 16)
    product = skinny.skinny_product(weight)
    weight.fill_(1.0)
    torch.testing.assert_close(product(x), x.sum(1, keepdim=True).expand(2, 4), **near(16))


@HERE
def test_a_weight_that_is_replaced_is_read_to_the_end_as_it_was():
    x, linear = torch.randn(2, 16), torch.nn.Linear(16, 4)
    expected = linear(x)
    product = skinny.skinny_product(linear.weight, linear.bias)
    linear.weight.data = linear.bias.data = torch.empty(0)  # as offloading does
    torch.testing.assert_close(product(x), expected, **near(16))


@HERE
def test_a_bias_may_lie_anyhow():
    x, weight, bias = torch.randn(2, 16), torch.randn(4, 16), torch.randn(1).expand(4)
    torch.testing.assert_close(skinny.skinny_product(weight, bias)(x), F.linear(x, weight, bias), **near(16))


@HERE
def test_rows_that_lie_apart_are_read_as_they_are_meant():
    x, weight = torch.randn(16, 4).T, torch.randn(6, 16)
    torch.testing.assert_close(skinny.skinny_product(weight)(x), F.linear(x, weight), **near(16))


@HERE
@pytest.mark.parametrize("x", [torch.zeros(2, 32), torch.zeros(2, 16, dtype=torch.bfloat16), torch.zeros(16)])
def test_other_rows_than_the_weight_is_for_are_refused(x):
    with pytest.raises(RuntimeError, match="Rows of 16 float32 numbers"):
        skinny.skinny_product(torch.zeros(4, 16))(x)


@pytest.mark.parametrize(
    "rows, weight",
    [
        (skinny.ROWS + 1, torch.zeros(4, 16)),
        (8, torch.zeros(4, 24)),
        (8, torch.zeros(5, 16)),
        (8, torch.zeros(16, 4).T),
        (8, torch.zeros(4, 16, dtype=torch.bfloat16)),
    ],
)
def test_what_the_kernel_is_not_for_does_not_fit(rows, weight):
    assert not skinny.fits(rows, weight)


def compilers(tmp_path) -> dict:
    """What CC may name that makes no kernel."""
    broken, empty = tmp_path / "broken", tmp_path / "empty"
    broken.write_text("#!/bin/sh\nprintf 'warned\nerror: I cannot compile\n  ^~~\n' >&2\nexit 1\n")
    empty.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')  # a library that cannot be loaded
    for each in (broken, empty):
        each.chmod(0o755)
    names = {"none": "there-is-no-such-compiler", "broken": broken, "empty": empty, "quotes": "'"}
    return {name: str(compiler) for name, compiler in names.items()}


@HERE
@pytest.mark.parametrize("compiler", ["", " ", "cc -g", "c++"])
def test_any_compiler_of_c_will_do(compiler, monkeypatch, anew):
    monkeypatch.setenv("CC", compiler)
    assert skinny.kernel() is not None


def test_without_a_directory_for_it_there_is_no_kernel(monkeypatch, anew):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(skinny.tempfile, "TemporaryDirectory", full)
    assert skinny.kernel() is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none", "No such file .* 'there-is-no-such-compiler'"),
        ("broken", "error: I cannot compile$"),
        ("empty", "file too short"),
        ("quotes", "No closing quotation"),
    ],
)
def test_without_a_compiler_generation_goes_on(name, why, miniqwen_dir, tmp_path, monkeypatch, caplog, anew):
    model = MiniQwenForCausalLM.from_pretrained(miniqwen_dir).eval()
    how = {
        "input_ids": torch.arange(10, 50).view(5, 8),
        "attention_mask": torch.ones(5, 8, dtype=torch.long),
        "max_new_tokens": 20,
        "do_sample": False,
        "eos_token_id": None,
    }
    before = model.generate(**how)
    skinny.kernel.cache_clear()
    monkeypatch.setenv("CC", compilers(tmp_path)[name])
    assert skinny.kernel() is None
    assert not skinny.fits(5, model.lm_head.weight)
    assert torch.equal(model.generate(**how), before)
    told = [record.message for record in caplog.records if record.name == "suite.model.skinny"]
    assert len(told) == 1 and re.search(f"needs gcc .*, and .*{why}", told[0]), told


@HERE
def test_a_step_of_a_few_rows_takes_the_kernel(miniqwen_dir, monkeypatch):
    taken = []
    product = skinny.skinny_product
    monkeypatch.setattr(road, "skinny_product", lambda *args: taken.append(args[0].shape) or product(*args))
    model = MiniQwenForCausalLM.from_pretrained(miniqwen_dir).eval()
    ids = torch.arange(10, 50).view(5, 8)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert len(taken) == 4 * model.config.num_hidden_layers + 1
