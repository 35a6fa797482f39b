"""One server behind `suite serve`: `python -m suite.server_child vllm|transformers WORDS...`, as those would type them.

It ends with the process that started it, whatever ends that, and what it starts ends with it.
"""

import os
import sys

from suite.model.vllm_plugin import OWNER, end_with_owner


def main() -> None:
    which, *words = sys.argv[1:]
    owner = int(os.environ[OWNER])
    end_with_owner()
    if os.getppid() != owner:  # it was killed while this process began
        return
    os.environ[OWNER] = str(os.getpid())  # of the engine that is started here
    sys.argv = [which, "serve", *words]
    by_vllm() if which == "vllm" else by_transformers()


def by_vllm() -> None:
    from vllm.entrypoints.cli.main import main

    main()


def by_transformers() -> None:
    import transformers
    from transformers.cli.transformers import app

    from suite.model import MiniQwenForCausalLM

    # Its server looks for the class that config.json names there, and nowhere else.
    transformers.MiniQwenForCausalLM = MiniQwenForCausalLM
    app()


if __name__ == "__main__":
    main()
