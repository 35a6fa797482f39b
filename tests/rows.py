"""Rows on disk, as tests write and read them."""

import json
from pathlib import Path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows as a .jsonl or .parquet file, in a directory that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path) -> list[dict]:
    """The rows of a parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def a_tool(name: str, **properties: str) -> dict:
    """A function as a chat template is told of it."""
    types = {key: {"type": kind} for key, kind in properties.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": types}}}


def with_tools(model_dir: Path, target: Path) -> Path:
    """The same checkpoint, whose template writes tools, and `hint` of what else it is told, before all turns."""
    import shutil

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(model_dir, target))
    told = "{%- if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}{{- hint or '' }}"
    tokenizer.chat_template = told + tokenizer.chat_template
    tokenizer.save_pretrained(target)
    return target


def taught_rows(n: int, solutions: str) -> list[dict]:
    """Rows whose completions all say 7, which is the solution of some, every other one after a longer thought."""
    said = "<think>\n{}\n</think>\n<answer>\n7\n</answer>"
    return [
        {
            "prompt": [{"role": "user", "content": f"{'ab'[i % 2] * 4} {i}?"}],
            "completion": [{"role": "assistant", "content": said.format("1" * (1 + 4 * (i % 2)))}],
            "solution": solutions[i % len(solutions)],
        }
        for i in range(n)
    ]
