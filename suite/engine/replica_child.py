"""One engine behind `replicas`: `python -m suite.engine.replica_child HOW`.

It is asked by lines of JSON on stdin, until that ends. It takes new prompts between two steps of the engine, and says
each completion as soon as there is one.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict

from suite import child
from suite.engine import Sampling


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells every process of a job; the end of stdin ends this one
    if not child.is_owned():
        return

    def reply(**said) -> None:
        replies.write(json.dumps(said) + "\n")
        replies.flush()

    try:
        from suite.engine.vllm_engine import VllmEngine

        how = json.loads(sys.argv[1])
        with closing(VllmEngine(how.pop("name"), **how)) as model:
            reply(seats=model.seats, positions=model.positions)
            serve(model, inbox(), reply)
    except Exception as error:  # vLLM's own, of many kinds: for the eyes of who started all this
        reply(failure=f"{type(error).__name__}: {error}")
        raise


def inbox() -> queue.SimpleQueue:
    """The requests on stdin, None behind the last. Always read at once: who asks must not wait for a step to end."""
    found: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            found.put(json.loads(line))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def serve(model, requests: queue.SimpleQueue, reply: Callable) -> None:
    """Answer until nobody asks any more. A request of another asking takes the place of all that went before."""
    asking = None
    while True:
        for request in arrived(requests, wait=not model.asked):
            if request is None:
                return
            if request["asking"] != asking:
                model.drop()
                asking = request["asking"]
            if request["prompts"]:
                model.take(dict(request["prompts"]), Sampling(**request["sampling"]))
        if model.asked:
            for number, said in model.step():
                reply(asking=asking, number=number, completion=asdict(said))


def arrived(requests: queue.SimpleQueue, wait: bool) -> Iterator[dict | None]:
    """What has come in since; where there is nothing else to do, at least one."""
    while True:
        try:
            yield requests.get(block=wait)
        except queue.Empty:
            return
        wait = False


if __name__ == "__main__":
    main()
