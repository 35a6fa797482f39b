"""The judge of an evaluation is what its code does."""

import shutil
from pathlib import Path

import pytest

from suite import conditions, engine, judging, reasoning, rewards


def test_another_comment_in_the_code_that_judges_makes_no_other_judge_and_another_constant_does(tmp_path, monkeypatch):
    there = Path(shutil.copytree(Path(rewards.__file__).parent, tmp_path / "rewards"))
    numbers = (there / "numbers.py").read_text()

    def judge(text: str) -> str:
        (there / "numbers.py").write_text(text)
        return conditions.of(None, [], [], {}, {}, engine.EngineArguments())["judge"]

    before = judge(numbers)
    monkeypatch.setattr(rewards, "__file__", str(there / "__init__.py"))
    assert judge(numbers) == judge(f"# A comment.\n{numbers}") == before
    assert len({before, judge(f"{numbers}\nMOST = 3\n"), judge(f"{numbers}\nMOST = 4\n")}) == 3


@pytest.mark.parametrize("module", [judging, reasoning])
def test_so_does_the_code_that_makes_numbers_of_verdicts(module, tmp_path, monkeypatch):
    source, found = Path(module.__file__).read_text(), []
    for name, text in {"a": source, "b": f"# A comment.\n{source}", "c": f"{source}\nMOST = 3\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(module, "__file__", str(tmp_path / f"{name}.py"))
        found.append(conditions.of(None, [], [], {}, {}, engine.EngineArguments())["judge"])
    assert found[0] == found[1] != found[2]
