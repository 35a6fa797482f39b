"""README and docs: every command is run here or says what it needs; keys, files, links and figures are as told."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from suite import args, cli, data, rewards
from suite.values import as_mapping
from tests.conftest import ROOT
from tests.pages import CHINESE, ENGLISH, Command, Page, every_page, is_said_in
from tests.test_configs import CONFIGS, parsed, prepared_by, processes, written_in

PAGES = {name: Page(name) for name in every_page()}
# Pages whose commands another test runs as they stand there, each in its own way.
TESTED_ELSEWHERE = {"docs/lm-eval.md": "tests/test_lm_eval.py"}
HERE = [name for name in PAGES if name not in TESTED_ELSEWHERE]
# What no test can run: what it installs, starts or asks is not the suite's. A command of theirs says what it needs.
FOREIGN = {
    "source",
    "export",
    "nvidia-smi",
    "vllm",
    "curl",
    "hf",
    "lm_eval",
    "lighteval",
    "docker",
    "git",
    "ssh",
    "opencompass",
}
COMMANDS = (*cli.commands(), "run", "list")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|\.\.\.|<|\|")
# hidden, layers, heads, key/value heads, intermediate, vocabulary, tied: the true shapes of Qwen2.5.
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (2048, 36, 16, 2, 11008, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch, _in_a_directory_of_its_own):
    monkeypatch.chdir(ROOT)


# Both look into every file of a folder each time.
module_of = functools.cache(cli.module_of)
reward_names = functools.cache(rewards.names)


@functools.cache
def read(words: tuple[str, ...], known: frozenset[str] = frozenset()) -> None:
    """Read a command as its program does. Raises `ValueError` or fails where it could not be meant so."""
    program, rest = words[0], list(words[1:])
    if program == "suite":
        read_suite(rest, known)
    elif program == "accelerate":
        assert rest[0] == "launch" and "-m" in rest
        at = rest.index("-m")
        assert Path(rest[rest.index("--config_file") + 1]).is_file()
        read_suite([rest[at + 1].removeprefix("suite.train."), *rest[at + 2 :]], known)
    elif program == "sbatch":
        assert Path(rest[0]).is_file(), rest[0]
        read_suite(rest[1:], known)
    elif program == "make":
        makefile = Path("Makefile").read_text()
        for word in rest:
            name, is_set, _ = word.partition("=")
            assert re.search(rf"^{name} \?=" if is_set else rf"^{name}:", makefile, re.MULTILINE), f"make {word}"
    elif program in ("pip", "python"):
        read_python(program, rest)
    else:
        assert program in FOREIGN, f"'{program}' is no program that is known here"


def read_python(program: str, words: list[str]) -> None:
    """The extras, files and modules that a line names are there."""
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:^|\s)(?:\.|qwen-suite)\[([\w,-]+)\]", " ".join(words)):
        assert set(named.split(",")) <= extras.keys(), named
    for word in words:
        if word.startswith("tests/") or (program == "pip" and word.endswith(".txt")):
            assert Path(word.partition("::")[0]).exists(), word
        if re.fullmatch(r"(?:suite|tests)(?:\.\w+)+", word):
            path = Path(word.replace(".", "/"))
            assert path.is_dir() or path.with_suffix(".py").is_file(), word


def read_suite(words: list[str], known: frozenset[str]) -> None:
    """`suite WORDS`, strictly, by the keys of its own command; `known` are files that the page has one write."""
    command, rest = words[0], without_launcher(words[1:])
    if command in ("--help", "list"):
        assert command == "--help" or rest in (["rewards"], ["data"], ["stages"]), words
        return
    if command == "run":
        assert list(Path(rest[0]).glob("[0-9]*-*.yaml")), f"{rest[0]} holds no numbered configs"
        assert not rest[1:], f"suite run takes a directory alone: {rest[1:]}"
        return
    module = module_of(command)
    if "--help" in rest:
        cli.explain(command, rest)
        return
    path, rest = args.take_config(rest)
    if path is not None and path not in known:
        rest += ["--config", path]
    if command == "prepare":
        name = args.read_yaml(path)["name"] if path else rest[0]
        classes = module.arguments(name)
        data.load(name)
    else:
        classes = module.arguments(bool(path)) if command == "score" else module.arguments()
    if rest and not rest[0].startswith("--"):
        rest = [f"--{fields(classes[0])[0].name}", *rest]
    rest = ["--model_type" if word == "--as" else word for word in rest]
    ours = [d for d in classes if d.__module__.startswith("suite.") or "knobs" in d.__name__]
    *_, values = args.parse(classes, rest, needs_config=False, only=ours)
    knobs = as_mapping("reward_kwargs", values.get("reward_kwargs"))
    for name in values.get("reward_funcs") or []:
        assert name in reward_names() or "." in name or "/" in name, name
        if name in knobs and name in reward_names():
            rewards.load(name, knobs[name])


def without_launcher(words: list[str]) -> list[str]:
    """What is left for the command itself."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--launch":
            assert Path(next(rest)).is_file(), words
        elif word in cli.LAUNCHER_WORDS:
            next(rest)
        else:
            kept.append(word)
    return kept


def unclear(page: Page) -> list[str]:
    """What is wrong with its commands: not to be read, or neither to be run here nor marked."""
    found = []
    for command in page.commands():
        where = f"{page.name}:{command.line}: {command}"
        if command.mark == "fails":  # run below
            found += [] if command.answer else [f"{where}: does not say how it fails"]
            continue
        try:
            read(tuple(command.words), frozenset(page.files()))
        except (ValueError, AssertionError) as error:
            found.append(f"{where}: {error}")
        if command.mark == "" and command.words[0] not in ("suite", "python"):
            found.append(f"{where}: no test can run this; say what it needs (`# needs ...`)")
    return found


def hidden(page: Page) -> list[str]:
    """Commands where nobody looks for them."""
    programs = r"(?:(?:suite|make|pip|python|accelerate|sbatch|source|curl|git|hf) [\w./-]|nvidia-smi)"
    aside = rf"(?:    +|\t|> ?){programs}|\s*~~~"  # indented, quoted, or in the other kind of fence
    found = [f"{page.name}:{i}: {line}" for i, line in enumerate(page.prose, 1) if re.match(aside, line)]
    for fence in page.fences:
        where = f"{page.name}:{fence.line}"
        if fence.language in ("", "text"):
            found += [f"{where}: {line}" for line in fence.text.splitlines() if re.match(rf"\$? ?{programs}", line)]
        elif fence.language not in ("sh", "yaml", "python", "json"):
            found.append(f"{where}: a fence of '{fence.language}'; commands are `sh`")
    return found


def unclear_inline(page: Page) -> list[str]:
    """The same of commands within a line; one with a placeholder, or the bare name of one or of its keys, is none."""
    found = []
    for code in page.inline():
        if not re.match("(?:suite|make|pip|python) ", code) or PLACEHOLDER.search(code):
            continue
        words = shlex.split(code)
        keys = {word.removeprefix("--") for word in words if word.startswith("--")}
        try:
            if words[-1].startswith("--"):
                assert keys <= {"as", "launch", "help"} | every_key()
            elif len(words) > 2 or words[0] != "suite" or words[1] not in COMMANDS:
                read(tuple(words))
        except (ValueError, AssertionError) as error:
            found.append(f"{page.name}: `{code}`: {error}")
    return found


def not_there(page: Page) -> list[str]:
    """Links and paths that lead nowhere."""
    found = []
    for link in page.links():
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if re.match(r"https?://", link):
            continue
        if not path.exists():
            found.append(f"{page.name}: no file: {link}")
        elif anchor and anchor not in Page(str(path)).anchors():
            found.append(f"{page.name}: no such heading: {link}")
    paths = r"(?<![\w./])(?:suite|configs|accelerate_configs|docs|tests|notebooks)/[\w./*{},-]+"
    named = [path for code in page.inline() for path in re.findall(paths, code)]
    return found + [f"{page.name}: no file: `{path}`" for path in named if not there_is(path.rstrip("."))]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_there_and_its_commands_are_run_or_say_what_they_need(name):
    page = PAGES[name]
    wrong = not_there(page)
    if name in HERE:
        wrong += [*unclear(page), *hidden(page), *unclear_inline(page)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```sh\nnvidia-smi\n```", "no test can run this"),
        ("```sh\n# needs a GPU\nnvidia-smi\n# on the CPU\nmake bench\n```", "make bench: no test can run this"),
        ("```sh\nsuite sft --config configs/nowhere.yaml   # needs a GPU\n```", "no config file"),
        ("```sh\nsuite sft --config configs/smoke/4-sft.yaml --max_step 3   # needs a GPU\n```", "mean 'max_steps'"),
        (
            "```sh\nsuite sft --config configs/smoke/4-sft.yaml \\\n  --max_step 3   # needs a GPU\n```",
            "mean 'max_steps'",
        ),
        ("```sh\nsuite sft --launch accelerate_configs/zero4.yaml   # needs GPUs\n```", "zero4"),
        ("```sh\nsuite prepare gsm9k   # needs the Hub\n```", "no data set 'gsm9k'"),
        ("```sh\nsuite score x.jsonl --reward_funcs acuracy   # needs x.jsonl\n```", "acuracy"),
        ("```sh\nsiute sft   # needs a GPU\n```", "no program that is known"),
        ("```sh\nmake quikstart   # needs PyPI\n```", "make quikstart"),
        ("```sh\npip install -e '.[vlm]'   # needs PyPI\n```", "vlm"),
        ("```sh\nsuite stf   # fails\n```", "does not say how"),
        ("```sh\nmake bench   # needs no GPU\n```", "no test can run this"),
        ("```sh\nmake bench   # 不需要 GPU\n```", "no test can run this"),
        ("```sh\nsuite run configs/smoke --max_steps 3   # needs minutes\n```", "a directory alone"),
        ("```\nsuite list data\n```", "suite list data"),
        ("```bash\nsuite list data\n```", "commands are `sh`"),
        ("Do so:\n\n    make bench\n", "make bench"),
        ("Do so:\n\n> make bench\n", "make bench"),
        ("~~~sh\nnvidia-smi\n~~~", "~~~sh"),
        ("```text\nnvidia-smi\n```", "nvidia-smi"),
        ("as `pip install 'qwen-suite[vlm]'` does", "vlm"),
        ("as in `suite sft --config configs/smoke/4-sft.yaml --max_step 3`", "mean 'max_steps'"),
        ("[here](nowhere.md)", "no file"),
        ("[here](#nowhere)", "no such heading"),
        ("see `suite/nowhere.py` and `configs/qwen2.5-{0.5b,70b}/`", "70b"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(text, told, tmp_path):
    (tmp_path / "page.md").write_text(f"# Page\n\n{text}\n")
    page = Page(str(tmp_path / "page.md"))
    found = "\n".join([*not_there(page), *unclear(page), *hidden(page), *unclear_inline(page)])
    assert told in found, found


def test_a_page_that_is_tested_elsewhere_is_read_there():
    for name, test in TESTED_ELSEWHERE.items():
        assert name in (ROOT / test).read_text(encoding="utf-8"), f"{test} reads no {name}"


def there_is(path: str) -> bool:
    """Whether a path, which may have {a,b} and * in it, names something; all of its alternatives."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces:
        return all(there_is(path[: braces.start()] + word + path[braces.end() :]) for word in braces[1].split(","))
    return any(ROOT.glob(path.rstrip("/")))


@pytest.mark.parametrize("name", HERE)
def test_fences_hold_what_they_say(name):
    page = PAGES[name]
    for fence in page.fences:
        where = f"{name}:{fence.line}"
        if fence.language == "python":
            compile(fence.text, where, "exec")
        elif fence.language == "json":
            lines = fence.text.splitlines() if fence.about.endswith(".jsonl") else [fence.text]
            assert all(json.loads(line) for line in lines), where
        elif fence.language == "yaml" and not fence.about:
            written = yaml.safe_load(fence.text)
            assert written.keys() <= every_key(), f"{where}: {sorted(written.keys() - every_key())}"
            if "reward_funcs" in written:
                rewards.load_all(written["reward_funcs"], written.get("reward_kwargs", {}))
        elif fence.language == "text" and fence.about:
            assert is_said_in(fence.text, fence.about) is not False, f"{where}: {fence.about} does not say so"


@functools.cache
def every_key() -> frozenset[str]:
    modules = {name: module_of(name) for name in COMMANDS if name not in ("prepare", "run", "list")}
    return frozenset({"env"}) | {f.name for module in modules.values() for d in module.arguments() for f in fields(d)}


def test_what_a_marked_command_reads_is_made_by_a_config_or_on_a_page():
    made = {written_in(path).get("output_dir") for path in CONFIGS} | {d for p in CONFIGS for d in prepared_by(p)}
    for page in PAGES.values():
        for words in (command.words for command in page.commands()):
            made |= {words[i + 1] for i, word in enumerate(words) if word == "--output_dir"}
            if words[:2] == ["suite", "prepare"]:
                made.add(f"data/{words[2]}")
    for page in PAGES.values():
        read_there = {
            word for command in page.commands() for word in command.words if re.fullmatch(r"data/[\w.-]+", word)
        }
        assert read_there <= made, f"{page.name}: nobody makes {sorted(read_there - made)}"


@pytest.mark.parametrize("name", ENGLISH)
def test_the_chinese_page_has_the_same_commands_headings_tables_and_figures(name):
    english, chinese = PAGES[name], PAGES[CHINESE[name]]
    assert [level for level, _ in chinese.headings()] == [level for level, _ in english.headings()]
    commands = [[(str(c), c.mark, c.environment) for c in page.commands()] for page in (english, chinese)]
    assert commands[0] == commands[1]
    fences = [[(f.language, f.about, without_comments(f)) for f in page.fences if f.language != "sh"]
              for page in (english, chinese)]  # fmt: skip
    assert fences[0] == fences[1], "what is no command is the same on both pages, letter by letter"
    for one, other in zip(english.tables(), chinese.tables(), strict=True):
        assert [[sorted(figures(cell)) for cell in row] for row in one] == [
            [sorted(figures(cell)) for cell in row] for row in other
        ], (one, other)
    assert {meant(english, link) for link in english.links()[1:]} == {
        meant(chinese, link) for link in chinese.links()[1:]
    }
    missing = figures_told(english) - figures_told(chinese)
    assert not missing, f"{chinese.name} does not tell {sorted(missing)}"


def test_the_table_of_the_quickstart_is_the_one_on_the_page_of_miniqwen():
    told = next(f.text for f in PAGES["README.md"].fences if f.text.startswith("stage ")).splitlines()[2:]
    table = next(t for t in PAGES["docs/miniqwen.md"].tables() if "goal" in t[0])
    assert [re.split(r" {2,}", line) for line in told] == table[2:]


def without_comments(fence) -> str:
    return yaml.safe_load(fence.text) if fence.language == "yaml" else fence.text


def figures_told(page: Page) -> set[str]:
    """The figures of its text, tables and links apart."""
    text = "\n".join(line for line in page.prose if not line.startswith("|"))
    return set(figures(re.sub(r"\]\([^)]*\)", "", text)))


def figures(cell: str) -> list[str]:
    return re.findall(r"\d[\d,.]*(?<![,.])", cell)


def meant(page: Page, link: str) -> str:
    """Where a link leads, whatever the language; anchors are checked elsewhere."""
    target = link.partition("#")[0]
    path = (page.path.parent / target).resolve().relative_to(ROOT).as_posix() if target else page.name
    return {there: here for here, there in CHINESE.items()}.get(path, path) + "#" * ("#" in link)


@pytest.mark.parametrize("name", ENGLISH)
def test_each_language_leads_to_the_other_in_its_first_line(name):
    for here, there in ((name, CHINESE[name]), (CHINESE[name], name)):
        first = (ROOT / here).read_text(encoding="utf-8").partition("\n")[0]
        link = re.fullmatch(r"\[.*\]\((.*)\)", first)
        assert link and (ROOT / here).parent.joinpath(link[1]).resolve() == ROOT / there, here


def test_the_tree_in_the_readme_names_every_room():
    tree = next(fence.text for fence in PAGES["README.md"].fences if fence.text.startswith("suite/"))
    rooms = {p.name if p.suffix else f"{p.name}/" for p in (ROOT / "suite").iterdir() if not p.name.startswith("__")}
    missing = sorted(rooms - set(re.split(r"\s+", tree)))
    assert not missing, f"The tree in README.md (and in docs/zh/README.md) does not name {', '.join(missing)}"


def test_every_reward_and_every_data_set_can_be_found_in_the_pages():
    assert set(rewards.names()) == {row[0].strip("`") for row in PAGES["docs/rewards.md"].tables()[0][2:]}
    told = PAGES["docs/rewards.md"].tables()[0][2:]
    scores = {row[0].strip("`"): (float(row[1]), float(row[2])) for row in told}
    assert all(low < high for low, high in scores.values())
    assert set(args.SUCCESSORS) == {
        key for row in PAGES["docs/configs.md"].tables()[-1][2:] for key in re.findall(r"`(\w+)`", row[0])
    }


def test_the_defaults_that_the_page_on_configs_tells_are_trls():
    from trl import DistillationConfig, DPOConfig, GRPOConfig, ModelConfig, SFTConfig

    table = next(t for t in PAGES["docs/configs.md"].tables() if t[0][1].startswith("TRL"))
    told = {row[0].strip("`"): [float(n) for n in re.findall(r"\d[\d.]*(?:e-\d+)?", row[1])] for row in table[2:]}
    assert told["learning_rate"] == [SFTConfig.learning_rate, GRPOConfig.learning_rate]
    assert DPOConfig.learning_rate == DistillationConfig.learning_rate == GRPOConfig.learning_rate
    assert told["per_device_train_batch_size"] == [SFTConfig.per_device_train_batch_size]
    assert told["max_length"] == [SFTConfig.max_length] == [DPOConfig.max_length]
    assert told["max_completion_length"] == [GRPOConfig.max_completion_length]
    assert told["num_generations"] == [GRPOConfig.num_generations]
    assert told["beta"] == [GRPOConfig.beta, DPOConfig.beta]
    assert told["lora_dropout`, `lora_target_modules"][0] == ModelConfig.lora_dropout
    assert ModelConfig.dtype == "float32" and SFTConfig.gradient_checkpointing and not SFTConfig.packing


def test_the_batches_that_the_page_on_scaling_tells_are_those_of_the_configs():
    table = next(t for t in PAGES["docs/scaling.md"].tables() if "a step" in t[0])
    for config, factors, total in table[2:]:
        path = Path(config.strip("`"))
        values, _ = parsed(path)
        wanted = [values["per_device_train_batch_size"], values["gradient_accumulation_steps"], processes(path)]
        assert [int(n) for n in factors.split("×")] == wanted, path
        told = [int(n.replace(",", "")) for n in figures(total)]
        assert told[0] == wanted[0] * wanted[1] * wanted[2]
        if "num_generations" in values:
            assert told[1] * told[2] == told[0] and told[2] == values["num_generations"]


def test_the_memory_that_the_page_on_scaling_tells_is_its_own_arithmetic():
    table = next(t for t in PAGES["docs/scaling.md"].tables() if "bytes" in t[0])
    assert table[0][2:] == list(SHAPES)
    for at, shape in enumerate(SHAPES.values(), 2):
        told = [float(row[at].replace(",", "")) for row in table[2:]]
        assert told == [round(number, digits) for number, digits in memory(*shape)], table[0][at]


def memory(width, layers, heads, kv_heads, inner, vocabulary, tied):
    """(figure, digits) of each line of the table."""
    head = width // heads
    linear = [(width, heads * head), (width, kv_heads * head), (width, kv_heads * head), (heads * head, width),
              (width, inner), (width, inner), (inner, width)]  # fmt: skip
    weights = layers * sum(i * o for i, o in linear)
    e = vocabulary * width
    p = weights + layers * (heads * head + 2 * kv_heads * head) + (2 * layers + 1) * width + e * (1 if tied else 2)

    def adapter(r: int) -> int:
        return layers * r * sum(i + o for i, o in linear)

    giga = [16 * p, 10 * p + 6 * e, 2 * p + 14 * p / 8, 16 * p / 8, 2 * p + 16 * adapter(32),
            4.127 / 8 * weights + 2 * (p - weights) + 16 * adapter(64), 4 * p, 2 * p]  # fmt: skip
    return [(p / 1e6, 0), *((bytes_ / 1e9, 1) for bytes_ in giga), (layers * kv_heads * head * 2 * 2 / 1e3, 1)]


@pytest.mark.slow
def test_every_command_without_a_need_runs_in_the_order_of_the_pages(tmp_path, monkeypatch):
    from tests.warm import Warm

    for name in ("configs", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # what needs the Hub is to say so, wherever it is tested
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # where `suite` would find what lies beside a config
    warm, wrong, ran = Warm("suite.train.sft", "suite.train.grpo"), [], 0
    try:
        for name in every_page():
            if name in CHINESE.values() or name in TESTED_ELSEWHERE:  # the same commands, or run there
                continue
            for file, text in PAGES[name].files().items():
                (tmp_path / file).write_text(text, encoding="utf-8")
            for command in PAGES[name].commands():
                if command.mark == "needs":
                    continue
                ran += 1
                code, said = carry_out(command, tmp_path, warm)
                said = " ".join(said.split())
                told = " ".join(command.answer.split())
                as_told = told in said and code == (2 if command.mark == "fails" else 0)
                if not as_told:
                    wrong.append(f"{name}:{command.line}: {command} ended with {code}: {said[-500:]}")
    finally:
        warm.close()
    assert not wrong, "\n".join(wrong)
    assert ran > 20


def carry_out(command: Command, home: Path, warm) -> tuple[int, str]:
    """(exit code, what it said), in `home`."""
    if command.words[0] == "suite":
        ended = warm.run(command.words[1:], home)
        return ended.code, ended.said
    done = subprocess.run(
        [sys.executable, *command.words[1:]],
        cwd=home,
        env={**os.environ, **command.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_messages_are_told_from_what_nobody_says(tmp_path):
    assert is_said_in(
        "num_generations: 1 leaves nothing to compare; GRPO needs at least 2 per prompt.", "suite/sense.py"
    )
    assert is_said_in("num_generations: 1 leaves nothing to compare; GRPO", "suite/sense.py")
    assert not is_said_in("num_generations: 1 leaves something to compare; GRPO needs at least 2", "suite/sense.py")
    assert not is_said_in("num_generations", "suite/sense.py")
    assert is_said_in("anything", "no_such_package/file.py") is None
