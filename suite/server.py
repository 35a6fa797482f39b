"""A server in a process of its own: waited for until it answers, listened to, and ended with all that it started."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import takewhile
from pathlib import Path

from suite import child
from suite.server_child import KEY

LOG_LINES, KEPT_LINES = 40, 1000  # of a server which died: how many are shown, and how many are looked through
# For the server and its workers to end in good order. One that still loads has nothing to finish, and vLLM's waits for
# the engine that it has begun to start.
END_SECONDS, LOADING_END_SECONDS = 60, 5


def cause_in(log: list[str]) -> str:
    """The line of a log that says why its program ended; nothing where none does."""
    told = [line for line in log if re.search(r"\b\w*[Ee]rror\b[:,] \S", line)]
    roots = [line for line in told if "root cause above" not in line] or told or [""]
    cause = re.sub(r"^\(\w+ pid=\d+\)\s*(ERROR .*?\[\S+\])?\s*", "", roots[-1])
    if re.search(r"\d validation errors? for ", cause):  # pydantic says below which field, and what is wrong with it
        below = map(str.strip, log[log.index(roots[-1]) + 1 :])
        cause = " ".join([cause, *takewhile(lambda line: "For further information" not in line, below)])
    return cause[:400]


class Server:
    """The server's process, and the last lines that it wrote. Leaving it ends the process and all its workers."""

    def __init__(self, words: list[str], room: Path, secret: str | None):
        """`words` are those of `server_child`, `room` where it runs, `secret` a key that its clients must know."""
        self.by, self.secret = words[0], secret
        self.answered = self.shown = False
        self.log: deque[str] = deque(maxlen=KEPT_LINES)
        kept = {name: value for name, value in os.environ.items() if name != KEY}
        self.process = child.start(
            "server_child",
            words,
            {**kept, "PYTHONUNBUFFERED": "1"} | ({KEY: secret} if secret else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=room,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def _read(self) -> None:
        """Keep what the server writes; once it answers, show it, too."""
        for line in self.process.stdout:
            line = line.rstrip().replace(self.secret, "***") if self.secret else line.rstrip()
            self.log.append(line)
            if self.shown:
                with contextlib.suppress(OSError):  # whoever stops listening to the log must not stop the server
                    print(line, file=sys.stderr, flush=True)

    def wait_until_it_answers(self, url: str) -> float:
        """The seconds that took. Raises `ValueError` where it ends instead."""
        import httpx

        begun = time.monotonic()
        with httpx.Client(trust_env=False, timeout=5.0) as client:  # no proxy stands between a machine and itself
            while self.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{url}/health").status_code == 200:
                        self.answered = self.shown = True
                        return time.monotonic() - begun
                time.sleep(0.3)
        raise ValueError(self._last_words("before it answered"))

    def wait(self) -> None:
        """Until somebody ends this. Raises `ValueError` where the server ends by itself."""
        self.process.wait()
        raise ValueError(self._last_words("by itself"))

    def _last_words(self, when: str) -> str:
        """Why it ended, in one line; what its log ends with goes to stderr."""
        child.kill(self.process)
        self.reader.join(10)
        if not self.answered:
            print("\n".join(f"| {line}" for line in list(self.log)[-LOG_LINES:]), file=sys.stderr, flush=True)
        cause = cause_in(list(self.log))
        how = child.how_it_ended(self.process.returncode)
        return f"The server ({self.by}) ended {how} {when}. {cause or 'The end of its log says more.'}"

    def __exit__(self, *caught) -> None:
        self.shown = False
        try:
            self.process.terminate()
            self.process.wait(END_SECONDS if self.answered else LOADING_END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second Ctrl-C comes here, too
            child.kill(self.process)
            self.process.wait()
            self.reader.join(10)
