"""All benchmarks, or those that are named: `python -m tests.benchmarks startup rewards`. `--rounds N` for fewer."""

import argparse
import importlib

# Name -> module, and what of it.
BENCHMARKS = {
    "startup": ("startup",),
    "rewards": ("rewards",),
    "model": ("model",),
    "model-kept": ("kept",),
    "model-processes": ("processes",),
    "model-avx2": ("avx2", "model"),
    "bf16": ("bf16",),
    "bf16-avx2": ("avx2", "bf16"),
    "sft": ("scripts", "sft"),
    "dpo": ("scripts", "dpo"),
    "grpo": ("scripts", "grpo"),
    "packing": ("keys", "packing"),
    "tag_weight": ("keys", "tag_weight"),
    "saves": ("saves",),
    "tokenizer": ("tokenizer",),
    "generate": ("generate",),
    "generate-avx2": ("avx2", "generate"),
    "evaluation": ("evaluation",),
    "true_shapes": ("true_shapes",),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, help="of each benchmark (9 of model and generate, 5 of the others)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'. There are: {', '.join(BENCHMARKS)}")
    for name in arguments.names or BENCHMARKS:
        module, *part = BENCHMARKS[name]
        n = arguments.rounds or (9 if {"model", "kept", "processes", "generate"} & {module, *part} else 5)
        print(f"\n{name}: median (min..max) of {n} rounds in turns", flush=True)
        importlib.import_module(f"tests.benchmarks.{module}").main(n, *part)


if __name__ == "__main__":
    main()
