"""All benchmarks, or those that are named: `python -m tests.benchmarks startup rewards`. `--rounds N` for fewer."""

import argparse
import importlib

NAMES = ("startup", "rewards", "model", "sft")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each benchmark (9)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'. There are: {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        print(f"\n{name}: median (min..max) of {arguments.rounds} rounds in turns", flush=True)
        importlib.import_module(f"tests.benchmarks.{name}").main(arguments.rounds)


if __name__ == "__main__":
    main()
