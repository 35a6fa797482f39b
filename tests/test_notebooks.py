"""The notebooks: as they lie in git, and as they run on a CPU, where only their parameters are others."""

import ast
import base64
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from suite import cli, notebook
from tests.conftest import HEADS_OF_32, ROOT, save_model
from tests.hub_stand_in import WRITES, a_hub
from tests.rows import write_rows

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\], n = (\d+)")
every_book = pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def tagged(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", ())


def test_there_are_four():
    assert [path.stem[:2] for path in BOOKS] == ["1-", "2-", "3-", "4-"]


@every_book
def test_in_git_there_is_nothing_but_what_somebody_wrote(path):
    book = read(path)
    nbformat.validate(book)
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)
    assert book.metadata.keys() <= {"accelerator", "kernelspec", "language_info"}
    assert book.metadata.language_info == {"name": "python"}
    for cell in code_of(book):
        assert not cell.outputs and cell.execution_count is None
        assert cell.metadata.keys() <= {"tags"}
    assert not re.search(r"https?://", path.read_text(encoding="utf-8"))  # every address is a parameter


@every_book
def test_what_it_takes_from_the_suite_is_there(path):
    """A room that is renamed breaks a notebook where only its execution, minutes later, would tell."""
    modules = {}
    for cell in code_of(read(path)):
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            if isinstance(node, ast.ImportFrom) and node.module == "suite":
                modules |= {name.name: importlib.import_module(f"suite.{name.name}") for name in node.names}
            of_ours = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
            assert not of_ours or hasattr(modules[node.value.id], node.attr), ast.unparse(node)
    assert modules


@every_book
def test_one_cell_holds_the_parameters_and_the_one_behind_it_installs_what_is_pinned(path):
    parameters, install, *rest = code_of(read(path))
    assert tagged(parameters) and not any(map(tagged, (install, *rest)))
    assigned = ast.parse(parameters.source).body
    assert all(isinstance(node, ast.Assign) and ast.literal_eval(node.value) is not ... for node in assigned)
    names = [target.id for node in assigned for target in node.targets]
    assert {"MODEL", "ROWS", "INSTALL", "REPOSITORY"} <= set(names)
    assert ast.literal_eval(assigned[names.index("REPOSITORY")].value) == ""
    assert "pip install --quiet --constraint constraints.txt" in install.source
    assert install.source == code_of(read(BOOKS[0]))[1].source
    assert not any("pip " in cell.source for cell in rest)


@every_book
def test_each_command_is_one_and_its_config_is_there(path):
    found = [line for cell in code_of(read(path)) for line in cell.source.splitlines() if "%suite " in line]
    for line in found:
        words = line.partition("%suite ")[2].split()
        assert words[0] in cli.commands(), line
        for config in re.findall(r"--config (configs/\S+)", line):
            assert (ROOT / config).is_file(), config
    assert len(found) >= 4


# In a notebook: the command line.


class Shell:
    """What IPython gives an extension to register with."""

    def register_magic_function(self, function, kind: str, name: str) -> None:
        self.registered = (function, kind, name)


def test_the_extension_brings_one_word():
    shell = Shell()
    notebook.load_ipython_extension(shell)
    assert shell.registered == (notebook.run, "line_cell", "suite")


@pytest.mark.slow
def test_a_command_shows_what_it_says_and_one_that_fails_ends_the_notebook(capsys):
    notebook.run("list rewards")
    told = capsys.readouterr().out
    assert told.startswith("$ suite list rewards\n") and "accuracy " in told
    with pytest.raises(RuntimeError, match="suite list ended with exit code 2"):
        notebook.run("list 'all sorts'")
    assert "suite: suite list all sorts: choose one of rewards" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("hears_signals")
def test_an_interrupt_is_handed_on_and_what_the_command_says_then_is_shown(tmp_path):
    """As a kernel gets it: a signal to this process alone, when the command is at its work."""
    program = """
import os, signal, threading, time
from pathlib import Path
from suite import notebook

def interrupt():
    while not Path(".out.journal").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    notebook.run("prepare arithmetic --size 3000000 --output_dir out")
except KeyboardInterrupt:
    print("handed on")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "handed on" in done.stdout and "ended by SIGTERM" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_of_with_what_it_said():
    with pytest.raises(RuntimeError, match="(?s)does not answer. It said.*runs/nothing"):
        notebook.Server("runs/nothing --port 0")


# The cell that installs, without the installing.


def installed(home: Path, **parameters) -> str:
    """What a kernel says of where it is, behind the first two cells."""
    from nbclient import NotebookClient

    book = read(BOOKS[0])
    book.cells = [*code_of(book)[:2], nbformat.v4.new_code_cell("print(Path.cwd())")]
    with_parameters(book, INSTALL=False, **parameters)
    client = NotebookClient(book, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(home)}})
    client.execute(env=environment(home))
    return said(book.cells[-1]).strip()


@pytest.mark.slow
def test_a_notebook_finds_its_checkout_or_clones_one(tmp_path):
    from nbclient.exceptions import CellExecutionError

    there = tmp_path / "there"
    for folder in ("configs", "notebooks"):
        (there / folder).mkdir(parents=True)
        (there / folder / "a.txt").touch()
    assert installed(there / "notebooks") == installed(there) == str(there)
    with pytest.raises(CellExecutionError, match="no checkout of the suite here. Set REPOSITORY to its address"):
        installed(tmp_path)
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *words.split()], cwd=there, check=True)
    assert installed(tmp_path, REPOSITORY=str(there)) == str(tmp_path / "suite-checkout")
    assert (tmp_path / "suite-checkout/configs/a.txt").is_file()


@pytest.mark.parametrize("where", ["google.colab", None])
def test_packages_are_uninstalled_in_colab_alone(monkeypatch, where):
    """Elsewhere they are somebody's own."""
    told = []
    shell = SimpleNamespace(run_line_magic=lambda *words: told.append(" ".join(words)))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("shutil.which", lambda name: None)
    if where:
        monkeypatch.setitem(sys.modules, where, object())
    source = TransformerManager().transform_cell(code_of(read(BOOKS[0]))[1].source)
    exec(source, {"get_ipython": lambda: shell, "INSTALL": True, "REPOSITORY": ""})
    uninstalled = [words for words in told if words.startswith("pip uninstall")]
    assert len(uninstalled) == bool(where) and told[0].startswith("pip install")


# Executed: only the parameters are other.


def with_parameters(book, **others) -> None:
    """Other parameters, behind those of the cell: as papermill does it."""
    cell = code_of(book)[0]
    assert tagged(cell)
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in others.items())


def environment(home: Path) -> dict:
    """Of a kernel that leaves nothing outside, and asks nobody."""
    ours = {"IPYTHONDIR": str(home / ".ipython"), "JUPYTER_RUNTIME_DIR": str(home / ".jupyter")}
    return {**os.environ, **ours, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def gsm8k(folder: Path) -> Path:
    """Rows as GSM8K has them, of sums that no two share."""
    for split, first, count in (("train", 2, 48), ("test", 60, 16)):
        rows = [
            {
                "question": f"Ann has {n} apples and buys {n + 5} more. How many are there?",
                "answer": f"She has {n}+{n + 5}=<<{n}+{n + 5}={2 * n + 5}>>{2 * n + 5} apples.\n#### {2 * n + 5}",
            }
            for n in range(first, first + count)
        ]
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def models(tokenizer_dir, tmp_path_factory) -> list[str]:
    """Two random Qwen2: one ends texts, as Qwen2.5's base models do, and one ends turns, as the tuned ones do."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {**HEADS_OF_32, "max_position_embeddings": 1024}
    found = []
    for name, ends, spread in (("before", "<|endoftext|>", 0.1), ("after", "<|im_end|>", 0.05)):
        target = tmp_path_factory.mktemp("models") / name
        how = {**shape, "initializer_range": spread}
        save_model(Qwen2ForCausalLM, Qwen2Config, tokenizer_dir, target, ends, **how)
        found.append(str(target))
    return found


@pytest.fixture(scope="module")
def execute(models, tmp_path_factory):
    """Executes a notebook in a directory of its own that holds `configs`, with other parameters; returns both."""
    from nbclient import NotebookClient

    rows = str(gsm8k(tmp_path_factory.mktemp("gsm8k")))
    parameters = {
        "1": {"ROWS": 300, "SHARE": 0.02},
        "2": {"MODEL": models[0], "ROWS": rows},
        "3": {"MODEL": models[0], "ROWS": rows},
        "4": {"MODEL": models[1], "BEFORE": models[0], "ROWS": rows, "PUSH_TO": "me/after"},
    }

    def executed(path: Path, **env: str) -> tuple[list, Path]:
        home = tmp_path_factory.mktemp(path.stem)
        (home / "configs").symlink_to(ROOT / "configs")
        book = read(path)
        with_parameters(book, INSTALL=False, **parameters[path.stem[0]])
        client = NotebookClient(book, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(home)}})
        try:
            client.execute(env=environment(home) | env)
        finally:
            nbformat.write(book, home / path.name)  # to be read where something failed
        return code_of(book), home

    return executed


def said(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cells: list) -> list[bytes]:
    shown = [output.data for cell in cells for output in cell.outputs if "data" in output]
    return [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]


def check(cells: list, plots: int) -> None:
    """Every cell ran, the plots are there, and the last cell ends with a number inside its interval."""
    assert all(cell.execution_count for cell in cells)
    assert [picture[:8] for picture in pictures(cells)] == [b"\x89PNG\r\n\x1a\n"] * plots
    value, low, high, n = NUMBER.search(said(cells[-1])).groups()
    assert float(low) <= float(value) <= float(high) and int(n) > 0
    assert "Traceback" not in "".join(map(said, cells))
    assert said(cells[2]).startswith("no GPU: float32")


@pytest.mark.slow
def test_from_nothing_to_a_miniqwen_that_thinks(execute):
    cells, home = execute(BOOKS[0])
    check(cells, plots=4)
    for stage in ("pretrain", "sft", "sft-traces", "grpo"):
        assert json.loads((home / f"runs/quickstart/{stage}/run.json").read_text())["finished"]


@pytest.mark.slow
def test_sft_with_lora(execute, models):
    cells, home = execute(BOOKS[1])
    check(cells, plots=2)
    made = json.loads((home / "runs/notebook-sft/lora/run.json").read_text())
    assert made["finished"] and made["config"]["model_name_or_path"] == models[0] and made["steps"] == 10
    assert (home / "runs/notebook-sft/lora/adapter_model.safetensors").is_file()
    assert (home / "runs/notebook-sft/sft/model.safetensors").is_file()


@pytest.mark.slow
def test_grpo_with_vllm(execute):
    cells, home = execute(BOOKS[2])
    check(cells, plots=2)
    made = json.loads((home / "runs/notebook-grpo/lora/run.json").read_text())
    from suite import machine

    assert made["finished"] and made["config"]["use_vllm"] == machine.has_vllm()
    assert "8 of 48 completions" in "".join(map(said, cells))


@pytest.mark.slow
def test_evaluate_compare_chat_serve_push(execute):
    with a_hub() as there:
        token = {"HF_ENDPOINT": there.url, "HF_TOKEN": WRITES, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        cells, _ = execute(BOOKS[3], **token)
        assert "model.safetensors" in there.files("me/after")
    check(cells, plots=1)
    told = "".join(map(said, cells))
    assert "McNemar" in told and "8 at once" in told
    url = re.search(r"served at (http://127.0.0.1:\d+)", told)[1]
    import httpx

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/models")
