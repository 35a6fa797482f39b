"""The front door: a command is a module, imported only when it is chosen.

suite <command> --config FILE [--key value ...]
suite <stage> --config FILE --launch accelerate_configs/zero2.yaml
suite run configs/quickstart
suite list rewards|data|stages
"""

import importlib
import inspect
import os
import re
import sys
from pathlib import Path

from suite import args, data, ending
from suite.registry import entries, nearest

HERE = Path(__file__).parent
# In the order of use: what comes before training, and what comes after it.
BEFORE = ("prepare", "sample")
AFTER = ("score", "evaluate", "report", "rollouts", "chat", "serve", "export")
# In the order of a model's life; a stage that is in train/ and not here comes after these.
LIFE = ("tokenizer", "pretrain", "sft", "dpo", "distill", "grpo")
# Words that belong to `accelerate launch`, none of which is a key of TRL's.
LAUNCHER_WORDS = ("--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port",
                  "--mixed_precision")  # fmt: skip
# What the launcher would set to False in every process it starts, whatever it is here; it listens to a word alone.
REGIONAL = "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
YES = ("1", "on", "t", "true", "y", "yes")  # as accelerate reads it


def stages() -> dict[str, str]:
    """Name -> what the stage does, from the files in train/."""
    found = entries(HERE / "train", "main")
    return {name: found[name] for name in (*(n for n in LIFE if n in found), *(n for n in found if n not in LIFE))}


def commands() -> dict[str, str]:
    rooms = entries(HERE, "main")
    return {**{n: rooms[n] for n in BEFORE}, **stages(), **{n: rooms[n] for n in AFTER}}


def usage() -> str:
    width = max(map(len, commands()))
    told = "\n".join(f"  {name:<{width}}  {line}" for name, line in commands().items())
    return (
        "usage: suite <command> --config FILE [--key value ...] [--launch accelerate_configs/X.yaml]\n\n"
        f"{told}\n  {'run':<{width}}  Every numbered config of a directory, in order.\n"
        f"  {'list':<{width}}  What there is: suite list rewards|data|stages\n\n"
        "Keys are TRL's, and our own where TRL has none. The command line wins over the file."
    )


def show(words: list[str]) -> None:
    """`suite list rewards|data|stages`: names and first docstring lines, read without importing."""
    kinds = {
        "rewards": lambda: entries(HERE / "rewards", "{name}_reward"),
        "data": lambda: entries(HERE / "data", "load"),
        "stages": stages,
    }
    if len(words) != 1 or words[0] not in kinds:
        raise ValueError(f"{' '.join(['suite list', *words])}: choose one of {', '.join(kinds)}.")
    found = kinds[words[0]]()
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {line}" for name, line in found.items()))


def module_of(command: str):
    if command in stages():
        return importlib.import_module(f"suite.train.{command}")
    if command in commands():
        return importlib.import_module(f"suite.{command}")
    raise ValueError(
        f"There is no command '{command}'. Choose one of: {', '.join(commands())}, run, list."
        f"{nearest(command, [*commands(), 'run', 'list'])}"
    )


def launch(stage: str, words: list[str]) -> None:
    """Become `accelerate launch --config_file FILE -m suite.train.<stage>`, which one may as well type by hand."""
    if stage not in stages():
        raise ValueError(f"--launch is for training stages ({', '.join(stages())}), and '{stage}' is not one of them.")
    at = words.index("--launch")
    if len(words) < at + 2 or not Path(words[at + 1]).is_file():
        there = ", ".join(sorted(str(p) for p in Path("accelerate_configs").glob("*.yaml")))
        raise ValueError(f"--launch needs an accelerate config file. There are: {there or 'none here'}.")
    ours, theirs = [], ["--config_file", words[at + 1]]
    rest = iter(words[:at] + words[at + 2 :])
    for word in rest:
        if word.partition("=")[0] in LAUNCHER_WORDS:
            theirs += [word] if "=" in word else [word, next(rest, "")]
        else:
            ours.append(word)
    if os.environ.get(REGIONAL, "").lower() in YES:
        theirs.append("--dynamo_use_regional_compilation")
    command = ["-m", "accelerate.commands.launch", *theirs, "-m", f"suite.train.{stage}", *ours]
    print("accelerate launch " + " ".join(command[2:]), flush=True)
    os.execv(sys.executable, [sys.executable, *command])


def run(words: list[str]) -> None:
    """`suite run DIR`: its numbered configs in order, in this one process; after each stage that leaves a model, an
    evaluation of DIR, if there is one for it."""
    if not words or not Path(words[0]).is_dir():
        raise ValueError("suite run needs a directory of numbered configs, for example configs/quickstart.")
    directory, words = Path(words[0]), words[1:]
    chapters = sorted(
        (p for p in directory.glob("*.yaml") if re.match(r"\d+-", p.name)), key=lambda p: int(p.name.partition("-")[0])
    )
    if not chapters:
        raise ValueError(f"{directory} holds no numbered configs, such as 1-prepare.yaml.")
    for path in chapters:
        command = next((c for c in commands() if re.fullmatch(rf"\d+-{c}(-.+)?", path.stem)), path.stem)
        _chapter(command, path, words)
        output_dir = Path(str(args.read_yaml(path).get("output_dir")))
        evaluation = _evaluation_of(path, command)
        if evaluation and command in stages() and (output_dir / "config.json").is_file():
            _chapter("evaluate", evaluation, ["--checkpoints", *_looked_at(path, output_dir, evaluation)])


def _evaluation_of(chapter: Path, command: str) -> Path | None:
    """For 5-sft-long.yaml the first of evaluate-sft-long.yaml, evaluate-sft.yaml and evaluate.yaml that is there."""
    names = (f"evaluate-{chapter.stem.partition('-')[2]}", f"evaluate-{command}", "evaluate")
    there = (chapter.with_name(f"{name}.yaml") for name in names)
    return next((path for path in there if path.is_file()), None)


def _looked_at(chapter: Path, output_dir: Path, evaluation: Path) -> list[str]:
    """The chapter's model; by an evaluation that is not every chapter's, first the one it started from."""
    start = args.read_yaml(chapter).get("model_name_or_path")
    both = evaluation.stem != "evaluate" and start and (Path(start) / "config.json").is_file()
    return [*([start] if both else []), str(output_dir)]


def _chapter(command: str, path: Path, words: list[str]) -> None:
    print(f"\n$ suite {command} --config {path} {' '.join(words)}".rstrip(), flush=True)
    module_of(command).main(["--config", str(path), *words])


def explain(command: str, words: list[str]) -> str:
    """The page behind `suite COMMAND --help`, for `prepare NAME --help` with the knobs of that data set."""
    module = module_of(command)
    names = [word for word in words if not word.startswith("-")]
    if command == "prepare" and not names:
        return f"{module.__doc__}\nIts other keys are the data set's own: suite prepare NAME --help"
    if command == "prepare":
        return f"{module.__doc__}{args.describe(module.arguments(names[0]))}\n\n{inspect.getdoc(data.load(names[0]))}"
    return f"{module.__doc__}{args.describe(module.arguments())}"


def _main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    command, words = argv[0], argv[1:]
    if command in commands() and {"-h", "--help"} & set(words):
        print(explain(command, words))
    elif command == "list":
        show(words)
    elif command == "run":
        run(words)
    elif "--launch" in words:
        launch(command, words)
    else:
        module_of(command).main(words)


def main() -> None:
    sys.path.insert(0, os.getcwd())  # so that `reward_funcs: [my_rewards.brevity]` finds a file beside the config
    sys.exit(ending.answer_for(_main, sys.argv[1:]))


if __name__ == "__main__":
    main()
