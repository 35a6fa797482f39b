"""The command line in a notebook: its output in the cell as it comes, and a command that fails ends the notebook.

%load_ext suite.notebook
%suite sft --config configs/qwen2.5-0.5b/sft-lora.yaml --max_steps 100

`!suite ...` runs the same command, but a notebook goes on after one that failed. Each command is a process of its own,
which gives the memory of a GPU back when it ends. Words in braces are the notebook's variables. The lines below
`%%suite chat ...` are what is typed.
"""

import atexit
import codecs
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Lines at once, a bar second by second, and none for what is done to the rows on the way, of which there are many.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
PATIENCE = 60  # seconds for a process to tidy up when it is told to end
_SERVED = re.compile(r"^(\S+) is served at (http\S+) .*$", re.MULTILINE)


def load_ipython_extension(shell) -> None:
    """What `%load_ext suite.notebook` calls."""
    shell.register_magic_function(run, "line_cell", "suite")


def run(line: str, typed: str = "") -> None:
    """`suite LINE` to its end. Raises `RuntimeError` where it fails; interrupted, it is told to end, and may save."""
    words = shlex.split(line)
    print(f"$ suite {shlex.join(words)}", flush=True)
    with tempfile.TemporaryFile() as keyboard:
        keyboard.write(typed.encode())
        keyboard.seek(0)
        process = started(words, keyboard, subprocess.PIPE)
    try:
        show(process.stdout)
    except KeyboardInterrupt:
        process.terminate()
        show(process.stdout)
        raise
    finally:
        process.stdout.close()
        end(process)
    if process.returncode:
        raise RuntimeError(f"suite {' '.join(words[:1])} ended with exit code {process.returncode}; see above.")


def started(words: list[str], reads: IO | int, writes: IO | int) -> subprocess.Popen:
    """`suite WORDS...` as a process, by this notebook's own Python.

    In a session of its own: Jupyter's interrupt goes to every process of a session, and this one is to be told by us.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "suite.cli", *words],
        env={**os.environ, **ENVIRONMENT},
        stdin=reads,
        stdout=writes,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def show(output: IO) -> None:
    for piece in pieces(output.fileno()):
        print(piece, end="", flush=True)


def pieces(pipe: int) -> Iterator[str]:
    """What comes out of a pipe, as it comes; no character is cut in two."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := os.read(pipe, 1 << 16):
        yield decoder.decode(piece)


def end(process: subprocess.Popen) -> None:
    """See that a process ends: if it does not by itself, by SIGTERM, and at last by SIGKILL."""
    for tell in (lambda: None, process.terminate, process.kill):
        tell()
        try:
            process.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue


class Server:
    """`suite serve LINE` beside the notebook, once it answers. What it says goes to `log`.

    Raises `RuntimeError` where it ends instead, or does not answer within `seconds`.
    """

    def __init__(self, line: str, log: str | Path = "serve.log", seconds: float = 900):
        self.log = Path(log)
        with self.log.open("wb") as file:
            self.process = started(["serve", *shlex.split(line)], subprocess.DEVNULL, file)
        atexit.register(self.stop)
        until = time.monotonic() + seconds
        try:
            while not (found := _SERVED.search(self._said())):
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"suite serve does not answer. It said:\n{self._said()[-2000:]}")
                time.sleep(0.5)
        except BaseException:  # an interrupt, too, leaves no server behind
            self.stop()
            raise
        self.model, self.url = found.groups()

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def told(self) -> str:
        """What it says of how to call it."""
        said = self._said()
        return said[_SERVED.search(said).start() :].strip()

    def stop(self) -> None:
        """End it and its workers."""
        atexit.unregister(self.stop)
        self.process.terminate()
        end(self.process)
