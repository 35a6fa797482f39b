"""`suite chat --web`: the page in a real browser, with models that were taught what to say."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from suite import engine, web
from tests.conftest import ROOT, save_model
from tests.stand_in import MODEL, refusal, serving

RIGHT = (
    "<think>\ntwo and *two*\n</think>\n<answer>4</answer>\n\n**Sure**, and <b>not</b> bold: "
    '<img src=x onerror="window.hacked=1">\n\n```html\n<i>a</i> && b\n```\n\n![x](http://192.0.2.1/x.png) \\(x^2\\)'
)
WRONG = "It is 5."
ENDLESS = "and on " * 40


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("<answer>4</answer>", "&lt;answer>4&lt;/answer>"),
        ("say `<b>` or <b>", "say `<b>` or &lt;b>"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n&lt;b>"),
        ("~~~html\n<b> still being written", "~~~html\n<b> still being written"),
        ("1. so\n   ```\n   <b>\n   ```\n<b>", "1. so\n   ```\n   <b>\n   ```\n&lt;b>"),
        ("a ` <b>\n\n` <b>", "a ` &lt;b>\n\n` &lt;b>"),
        ("\\`<b>`", "\\`&lt;b>`"),
        ("```<b>", "```&lt;b>"),
    ],
)
def test_html_is_escaped_wherever_markdown_would_not_show_it(text, seen):
    assert web.shown(text) == seen


def test_thinking_lies_in_accordions_and_the_programs_own_word_at_the_end():
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<q>"},
        {"role": "assistant", "content": "<think>\na<b\n</think>\n4"},
    ]
    question, thought, answer = web.bubbles(turns, show_thinking=False)
    assert question == {"role": "user", "content": "&lt;q>"} and answer["content"] == "4"
    assert thought["content"] == "a&lt;b" and thought["metadata"] == {"title": "Thought", "status": "done"}
    turns[2]["content"] = "<think>a</th"
    *_, thought = web.bubbles(turns, show_thinking=False, is_growing=True)
    assert thought["content"] == "a" and thought["metadata"] == {"title": "Thinking ...", "status": "done"}
    *_, thought, note = web.bubbles(turns, show_thinking=True, note=("Error", "it is <gone>"))
    assert thought["content"] == "a&lt;/th" and "status" not in thought["metadata"]
    assert note["content"] == "it is &lt;gone>" and note["metadata"]["title"] == "Error"


def refused(*words) -> str:
    keys = web.WebArguments(**dict(zip(words[::2], words[1::2], strict=True)))
    written = dict.fromkeys(words[::2])
    with pytest.raises(ValueError) as error, web.opened(keys, written):
        pass
    return str(error.value)


class EndlessTalk:
    """A conversation of which no answer ends by itself."""

    turns: list[dict] = []

    def ask(self, text, sampling):
        while True:
            yield "and on "


def test_an_answer_shows_nothing_last_once_another_conversation_has_begun(monkeypatch):
    monkeypatch.setattr(web, "BETWEEN", 0.0)
    start = web.Settings(engine.Sampling(5), "", show_thinking=False)
    page, tab = web.Page([], start), web.Tab([], start)
    tab.conversations = [EndlessTalk()]
    answer = page._answer(tab, 0, "on")
    assert "and on" in str(next(answer))
    tab.end()
    assert list(answer)[-1] == []


def test_others_come_in_with_a_password_or_not_at_all(monkeypatch):
    monkeypatch.delenv("SUITE_PASSWORD", raising=False)
    for host in ("0.0.0.0", ""):
        assert f"host: '{host}' lets other machines in" in refused("host", host, "port", 0)
    assert "Cannot assign requested address" in refused("host", "192.0.2.1")
    monkeypatch.setenv("SUITE_PASSWORD", " ")
    assert "SUITE_PASSWORD" in refused("host", "0.0.0.0", "port", 0)
    told = refused("password_env", "hunter2")
    assert "must name an environment variable" in told and "hunter2" not in told


def test_without_gradio_and_where_the_port_is_taken_one_line_says_what_to_do(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of '127.0.0.1'" in refused("port", port)
    with pytest.raises(ValueError, match="port: 70000 must be"):
        web.WebArguments(port=70000)
    with pytest.raises(ValueError, match="port goes with `--web`"):
        web.refuse_keys({"port": 1, "model": "x"})
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'qwen-suite[web]'" in refused("port", 0)


# In a browser: one server with two checkpoints, and one with an address and an adapter behind a password.

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SENT = "Network.requestWillBeSent"
DESKTOP, PHONE = (1280, 800), (390, 844)


def taught(target: Path, tokenizer_dir: Path, says: dict[str, str]) -> Path:
    """A tiny miniqwen that has learned a few answers by heart; what is ENDLESS has no end of turn."""
    import torch
    from transformers import AutoTokenizer

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    room = {"max_position_embeddings": 8192}  # so that ENDLESS lasts as long as a test looks at it
    save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, **room)
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = MiniQwenForCausalLM.from_pretrained(target)
    rows = []
    for question, answer in says.items():
        asked = engine.render(tokenizer, [{"role": "user", "content": question}])
        said = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] * (answer != ENDLESS)
        rows.append({"input_ids": torch.tensor([asked + said]), "labels": torch.tensor([[-100] * len(asked) + said])})
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95))
    surprise = float("inf")
    while surprise > 0.5:  # of all tokens together, less than log 2: each is likelier than all others
        losses = [model(**row).loss * (row["labels"] != -100).sum() for row in rows]
        surprise = sum(losses).item()
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(target)
    return target


@contextlib.contextmanager
def page_of(directory: Path, *words, **environment: str):
    """`suite chat WORDS --web` in a process of its own: its address, and the process, which is ended behind it."""
    log = directory / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "suite.cli", "chat", *map(str, words), "--web", "--port", "0", "--temperature", "0"],
            cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    try:
        told = next((line for line in process.stdout if " at http://" in line), "")
        assert told, log.read_text()
        yield re.search(r"http://[\d.]+:\d+", told)[0], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert CHROMIUM and DRIVER, "The page is tested in Debian's chromium with chromium-driver: `make browser`, as root."
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    here = tmp_path_factory.mktemp("browser")
    for word in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={here / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(here)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.downloads = here
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def outside():
    """A proxy that nobody should ask: counts the connections that a server makes to anywhere but this machine."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        asked = []

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    asked.append(door.accept()[0])

        threading.Thread(target=listen, daemon=True).start()
        address = f"http://127.0.0.1:{door.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        yield {**dict.fromkeys(names, address), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}, asked
        door.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def two_models(tokenizer_dir, tmp_path_factory, outside):
    """The address of a page with two checkpoints."""
    models = tmp_path_factory.mktemp("models")
    after = taught(models / "after", tokenizer_dir, {"2+2?": RIGHT, "on": ENDLESS})
    before = taught(models / "before", tokenizer_dir, {"2+2?": WRONG, "on": ENDLESS})
    with page_of(models, after, "--compare", before, "--max_new_tokens", "5000", **outside[0]) as (url, process):
        yield url
        assert process.poll() is None, "nothing that was tried may have ended the server"
    assert process.returncode == 130 and "Traceback" not in (models / "stderr").read_text()
    assert not outside[1], "the server has asked somebody outside"


# The page itself notes that its button has changed: a short answer is over before anybody out here has looked.
WATCH = """
window.isAsked = false;
new MutationObserver((changes, watcher) => {
  if (document.querySelector("#message .stop-button")) { window.isAsked = true; watcher.disconnect(); }
}).observe(document.body, {childList: true, subtree: true, attributes: true});
"""


class Shown:
    """A page in the browser."""

    def __init__(self, driver, url: str, size=DESKTOP):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        driver.get(url)
        self.until(lambda: self.all("#message textarea") and self.all("#message .submit-button"), 30)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        found = self.all(selector)
        assert len(found) == 1, f"{len(found)} of {selector}"
        return found[0]

    def click(self, selector: str) -> None:
        self.until(lambda: self.one(selector).click() or True)  # again, where it was drawn anew in that moment

    def until(self, true, seconds: float = 60):
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(StaleElementReferenceException):
                found = true()
                if found:
                    return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the page says: {self.one('body').text}")

    def send(self, text: str) -> None:
        self.one("#message textarea").send_keys(text + "\n")

    def ask(self, text: str) -> None:
        self.driver.execute_script(WATCH)
        self.send(text)
        self.until(lambda: self.driver.execute_script("return window.isAsked"))
        self.until(lambda: self.all("#message .submit-button"))

    def open_settings(self) -> None:
        shut = self.one(".sidebar").rect["x"]
        self.click(".sidebar .toggle-button")
        self.until(lambda: self.one(".sidebar").rect["x"] <= shut - self.one(".sidebar").rect["width"])  # it slides in

    def column(self, number: int) -> str:
        return self.one(f"#model-{number}").text


@pytest.fixture
def page(browser, two_models):
    return Shown(browser, two_models)


@pytest.mark.slow
def test_two_checkpoints_answer_one_message_with_thinking_folded_until_a_click(page):
    page.ask("2+2?")
    assert page.column(1).endswith("2+2?\nIt is 5.")
    told = page.column(0)
    assert "Thought\n<answer>4</answer>\nSure, and <b>not</b> bold" in told and "two and two" not in told
    page.click("#model-0 .thought-group .title")
    page.until(lambda: "two and two" in page.column(0))
    page.click("#again")
    page.until(lambda: not page.all(".talker .message"))
    page.ask("2+2?")
    assert "two and two" not in page.column(0)
    page.open_settings()
    page.click("#thinking input")
    page.click("#again")
    page.until(lambda: not page.all(".talker .message"))
    page.ask("2+2?")
    page.until(lambda: "two and two" in page.column(0))


@pytest.mark.slow
def test_html_in_an_answer_is_text_and_nothing_is_fetched_from_elsewhere(page, two_models):
    page.driver.get_log("performance")  # what the browser did before this page
    page.driver.get(two_models)
    page.until(lambda: page.all("#message .submit-button"))
    page.ask("2+2?")
    assert 'bold: <img src=x onerror="window.hacked=1">' in page.column(0) and "<i>a</i> && b" in page.column(0)
    assert page.driver.execute_script("return window.hacked") is None
    assert [image.get_attribute("src") for image in page.all(".talker .message img")] == ["http://192.0.2.1/x.png"]
    assert page.all("#model-0 .katex") and not page.all(".talker b, .talker i")
    happened = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = {e["params"]["requestId"]: e["params"]["request"]["url"] for e in happened if e["method"] == SENT}
    held = {e["params"]["requestId"] for e in happened if e["params"].get("blockedReason") == "csp"}
    assert len(asked) > 10 and {asked[request] for request in held} == {"http://192.0.2.1/x.png"}
    assert not [url for request, url in asked.items() if request not in held and not url.startswith(two_models)]


@pytest.mark.slow
def test_an_answer_streams_is_stopped_and_counts_and_a_new_conversation_is_empty(page, browser):
    page.send("on")
    for length in (90, 300, 600):
        page.until(lambda length=length: len(page.column(0)) > length)
        assert page.all("#message .stop-button")
    page.send("not yet")  # stays in the box while somebody is answering
    page.click("#message .stop-button")
    page.until(lambda: page.all("#message .submit-button"))
    assert all("and on and on" in page.column(n) and "Stopped" in page.column(n) for n in (0, 1))
    assert page.one("#message textarea").get_attribute("value").strip() == "not yet"
    page.click("#save")
    saved = browser.downloads / "chat.jsonl"
    page.until(saved.is_file)
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    saved.unlink()
    assert [Path(row["model"]).name for row in rows] == ["after", "before"]
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"].startswith("and on and on")
    page.click("#again")
    page.until(lambda: not page.all(".talker .message"))
    page.send("\b" * 10 + "on")
    page.until(lambda: len(page.column(1)) > 200)
    page.click("#again")  # in the middle of an answer
    page.until(lambda: not page.all(".talker .message") and page.all("#message .submit-button"))
    time.sleep(0.5)  # nothing of the old answer comes behind
    assert not page.all(".talker .message")


@pytest.mark.slow
def test_each_tab_has_its_own_conversation_and_waits_for_its_turn(page, two_models):
    page.send("on")
    page.until(lambda: "and on" in page.column(0))
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    second = Shown(page.driver, two_models)
    second.send("2+2?")
    second.until(lambda: second.column(1).endswith("2+2?"))
    time.sleep(0.5)
    assert second.column(1).endswith("2+2?"), "a model answered two tabs at a time"
    page.driver.close()  # who waited leaves
    page.driver.switch_to.window(first)
    page.driver.switch_to.new_window("tab")
    third = Shown(page.driver, two_models)
    page.driver.switch_to.window(first)
    page.driver.close()  # who was answered leaves in the middle, and the models are free
    page.driver.switch_to.window(page.driver.window_handles[0])
    third.ask("2+2?")
    assert third.column(1).endswith("It is 5.")


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_all_of_the_page_is_in_sight_on_a_desk_and_on_a_phone(browser, two_models, size, tmp_path):
    page = Shown(browser, two_models, size)
    page.ask("2+2?")
    browser.save_screenshot(str(tmp_path / "page.png"))
    inside = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
    assert inside == list(size), "the page itself does not scroll"
    left, right, box, again, save = (
        page.one(selector).rect for selector in ("#model-0", "#model-1", "#message", "#again", "#save")
    )
    assert left["height"] > 250 and left["width"] > 300 and box["width"] > 250
    if size == DESKTOP:
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    else:
        assert left["x"] == right["x"] and left["y"] + left["height"] <= right["y"]
    for part in (box, again, save):
        assert right["y"] + right["height"] <= part["y"] and part["y"] + part["height"] <= size[1]
        assert part["x"] >= 0 and part["x"] + part["width"] <= size[0]
    assert again["x"] + again["width"] <= save["x"] and save["width"] > 40


def events(*deltas: dict) -> str:
    chunks = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
    return "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])


def adapted(base: Path, target: Path) -> Path:
    """An adapter that changes nothing yet: its model says what the base says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from suite.model import MiniQwenForCausalLM

    model = MiniQwenForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    return target


@pytest.mark.slow
def test_an_address_beside_an_adapter_behind_a_password_and_an_error_ends_only_its_answer(
    browser, tokenizer_dir, tmp_path
):
    import httpx

    def answer(body: dict):
        if "fall" in body["messages"][-1]["content"]:
            return refusal(500, "I have <fallen>")
        return 200, events({"reasoning_content": "two and two"}, {"content": f"4 by {body['messages'][0]['content']}"})

    before = taught(tmp_path / "before", tokenizer_dir, {"2+2?": WRONG})
    adapter = adapted(before, tmp_path / "adapter")
    with (
        serving(answer) as there,
        page_of(
            tmp_path, there.url, "--model", MODEL, "--compare", adapter, "--host", "0.0.0.0", SUITE_PASSWORD="open"
        ) as (url, process),
    ):  # fmt: skip
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert "components" not in httpx.get(f"{url}/config").text
        for path in ("queue/join", "run/predict", "upload"):
            assert httpx.post(f"{url}/gradio_api/{path}", json={}).status_code == 401, path
        assert httpx.post(f"{url}/login", data={"username": "x", "password": "opens"}).status_code == 400
        browser.get(url)
        page = Shown.__new__(Shown)
        page.driver = browser
        page.until(lambda: page.all("input[type=password]"))
        for field, word in zip(page.all("input"), ("anybody", "open"), strict=True):
            field.send_keys(word)
        page.click("button")
        page.until(lambda: page.all("#message .submit-button"))
        page.ask("2+2?")
        assert page.column(0).endswith("Thought\n4 by 2+2?") and page.column(1).endswith("It is 5.")
        page.ask("<b>fall</b>")
        page.until(lambda: "I have <fallen>" in page.column(0))
        assert "\n<b>fall</b>\nError\n" in page.column(0)
        page.open_settings()
        page.one("#system textarea").send_keys("S")
        page.ask("2+2?")
        assert page.column(0).endswith("4 by S") and "fall" not in page.column(0)
        assert process.poll() is None
