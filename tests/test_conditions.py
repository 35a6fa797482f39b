"""The judge of an evaluation is what its code does."""

import shutil
from pathlib import Path

from suite import conditions, engine, rewards


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
