"""The page fills blanks in a browser, and shows how GLM reads them.

GLM_SCREENSHOTS=docs makes the pictures of docs/page.md.
"""

import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from typer.testing import CliRunner

gradio = pytest.importorskip("gradio", reason="the page is made with gradio, which is missing")

from glm_transformers.apps import page  # noqa: E402
from glm_transformers.apps.listener import bind  # noqa: E402
from glm_transformers.apps.pipeline import open_pipeline  # noqa: E402
from glm_transformers.cli import app  # noqa: E402
from glm_transformers.conversion import convert_checkpoint, verify_repository  # noqa: E402
from glm_transformers.demo import CHECKPOINT, OPTIONS  # noqa: E402

ROME = "Rome is the capital of [MASK] and a dog has [MASK] legs."
SPAIN = "The capital of Spain is [MASK]."
SECONDS = 20  # until an answer must be there, on a machine that has much to do
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def pipeline(demo_repository):
    return open_pipeline(str(demo_repository), device="cpu")


def joined(parts) -> str:
    return "".join(text for text, _ in parts)


# --- What it shows --------------------------------------------------------------------------------


def test_the_answers_stand_in_the_text_and_in_the_table(pipeline):
    parts, table, _ = page.fill(pipeline, ROME)
    assert joined(parts) == "Rome is the capital of Italy and a dog has four legs."
    assert [part for part in parts if part[1]] == [("Italy", "blank 1"), ("four", "blank 2")]
    (result,) = pipeline([ROME], alternatives=5, max_piece_length=32)
    of_blanks = table.split("<caption")[1:]
    for shown, alternatives in zip(of_blanks, result["alternatives"], strict=True):
        assert re.findall(r'auto">(.*?)</td>', shown) == [one["answer"] for one in alternatives]
        assert f"<td>{alternatives[0]['probability']:.1%}</td>" in shown


def test_settings(pipeline):
    parts, table, _ = page.fill(pipeline, ROME, allowed="two, six，", alternatives=2)
    assert {text for text, name in parts if name} <= {"two", "six"}
    assert set(re.findall(r'auto">(.*?)</td>', table)) == {"two", "six"}
    assert "Madrid" not in joined(page.fill(pipeline, SPAIN, forbidden="Madrid")[0])
    (_, (answer, _), _), *_ = page.fill(pipeline, "It [MASK].", shortest=3, longest=4)
    assert 3 <= len(pipeline.tokenizer.tokenize(f" {answer}")) <= 4


def test_answers_that_are_drawn(pipeline):
    torch.manual_seed(1)
    drawn = [page.fill(pipeline, "[sMASK]", page.DRAWN, temperature=2) for _ in range(3)]
    assert len({joined(parts) for parts, *_ in drawn}) > 1
    assert all("<table" not in table for _, table, _ in drawn)


def test_programs_cannot_send_more_than_the_page_takes(pipeline):
    for texts in ({"text": "a" * 20_001}, {"text": SPAIN, "forbidden": "a, " * 10_000}):
        with pytest.raises(ValueError, match="20000 are the most"):
            page.fill(pipeline, **texts)


def test_what_cannot_be_seen_in_the_text_is_said():
    assert "nothing for blank 1, blank 3." in page.empty_ones(["", "a", ""])
    assert page.empty_ones(["a"]) == ""
    assert page.percent(0.0996) == "10.0%" and page.percent(1e-9) == "&lt; 0.1%"


@pytest.mark.parametrize("text", [ROME, "The opposite of hot is [gMASK]", "[MASK][MASK]"])
def test_the_model_reads_and_writes_what_the_picture_shows(pipeline, text):
    """With these positions and this mask, given explicitly, it writes these tokens."""
    (result,) = pipeline([text], return_tensors=True, max_piece_length=8)
    context = pipeline.tokenizer(text, return_tensors="pt").input_ids
    behind = result["generated_token_ids"][None]
    ids = torch.cat([context, behind], dim=1)
    reading = page.Reading.of(ids, pipeline.tokenizer, pipeline.model.config, 8)
    config = pipeline.model.config
    read = torch.where(ids == config.eop_token_id, config.sop_token_id, ids)[:, :-1]
    with torch.no_grad():
        logits = pipeline.model(
            input_ids=read,
            position_ids=torch.tensor([[*reading.positions.values()]]),
            attention_mask=torch.tensor(reading.sees)[None, None],
        ).logits
    written = [pipeline.tokenizer.token_text(id) for id in logits[0].argmax(-1).tolist()]
    start = context.shape[1]
    assert reading.written == [""] * start + written[start:]
    assert reading.tokens == [pipeline.tokenizer.token_text(id) for id in read[0].tolist()]
    blanks = [blank for blank in reading.blanks[:start] if blank]
    assert blanks == [*range(1, text.count("MASK]") + 1)]


def test_a_text_is_text_and_no_html(pipeline):
    parts, table, drawing = page.fill(pipeline, "<b>[MASK]</b> & <script> [MASK]")
    assert joined(parts).startswith("<b>") and "<script>" not in table + drawing
    assert "<b>" not in drawing and "&lt;" in drawing
    assert "&lt;b&gt;" in page.answers_table([[{"answer": "<b>", "probability": 1.0}]])
    assert "&lt;b&gt;" in page.note("<b>")


def test_a_long_text_has_no_picture():
    long = page.Reading(["a"] * 200, [""] * 200, {}, [0] * 200, [[True] * 200] * 200)
    assert "<svg" not in page.picture(long) and "200 tokens" in page.picture(long)


def test_there_are_examples_for_each_mask_in_its_language(pipeline, repository):
    texts = page.examples(pipeline.tokenizer)
    assert all(any(mask in text for text in texts) for mask in pipeline.tokenizer.masks)
    filled = [joined(page.fill(pipeline, text)[0]) for text in texts]
    assert "The capital of Spain is Madrid." in filled
    chinese = open_pipeline(str(repository("tiny-chinese-10b-fp16")), device="cpu")
    assert not any("The" in text for text in page.examples(chinese.tokenizer))
    base = open_pipeline(str(repository("tiny-bert-fp16")), device="cpu")
    assert not any("gMASK" in text for text in page.examples(base.tokenizer))


# --- The command, and a Space ---------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    """The pages that would be shown, each with what it is launched with."""
    pages = []
    monkeypatch.setattr(
        gradio.Blocks,
        "launch",
        lambda self, **given: pages.append((self, given)) or (None, "http://here/", None),
    )
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda self: None)
    return pages


def test_the_command(shown, demo_repository):
    arguments = ["app", str(demo_repository), "--port", "7001", "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "http://here/" in result.stdout, result.output
    ((built, given),) = shown
    assert (given["server_name"], given["server_port"]) == ("127.0.0.1", 7001)
    assert built.title == "glm-demo" and not built.analytics_enabled and not given["share"]


def test_a_place_is_held_while_the_model_is_loaded(shown, pipeline, monkeypatch):
    refused = []

    def load(*_):
        with pytest.raises(ValueError, match="Nothing can listen on"):
            bind("127.0.0.1", 7002)
        refused.append(True)
        return pipeline

    monkeypatch.setattr("glm_transformers.apps.pipeline.open_pipeline", load)
    result = CliRunner().invoke(app, ["app", "glm-demo", "--port", "7002"])
    assert result.exit_code == 0 and refused, result.output


def test_a_page_without_gradio(monkeypatch, demo_repository):
    monkeypatch.delitem(sys.modules, "glm_transformers.apps.page", raising=False)
    monkeypatch.delattr("glm_transformers.apps.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["app", str(demo_repository)])
    assert result.exit_code == 1 and 'pip install ".[app]"' in result.stderr


def test_a_space(shown, tmp_path, monkeypatch):
    """The repository runs by itself: its page knows nothing of the package."""
    space = convert_checkpoint(CHECKPOINT, tmp_path / "space", **OPTIONS, space=True)
    assert all(check.passed is not False for check in verify_repository(space))
    settings = (space / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= set(settings.splitlines())
    monkeypatch.setenv("SPACE_ID", "me/glm")
    monkeypatch.syspath_prepend(str(space))
    names = runpy.run_path(str(space / "app.py"), run_name="__main__")
    assert names["BlankLayout"].__module__ == "blanks_glm"
    ((built, given),) = shown
    assert built.title == "me/glm" and given["server_name"] is None
    del sys.modules["blanks_glm"]
    # Converted again it may be replaced, and is no Space then.
    convert_checkpoint(CHECKPOINT, space, **OPTIONS, overwrite=True)
    assert not (space / "app.py").exists()


def test_a_model_without_blanks_is_no_space(tmp_path, reference):
    result = CliRunner().invoke(
        app,
        [
            *("convert", str(reference / "checkpoints/tiny-classifier"), str(tmp_path / "space")),
            *("--tokenizer", "none", "--num-attention-heads", "4", "--space"),
        ],
    )
    assert result.exit_code == 1 and "leave --space out" in result.stderr
    assert not (tmp_path / "space").exists()


# --- In a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # The sandbox is not for the superuser, who runs tests in containers.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(pipeline):
    built = page.build(pipeline, "glm-demo")
    yield page.launch(built, "127.0.0.1")
    built.close(verbose=False)


class Visitor:
    """Somebody with the page in a browser; `elsewhere` is what it asked other servers for."""

    def __init__(self, browser, address):
        self.page = browser.new_page(viewport={"width": 1200, "height": 760})
        self.elsewhere = []
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or self.elsewhere.append(request.url)
            ),
        )
        self.page.goto(address)
        self.text = self.page.get_by_label("Text with blanks")
        self.text.wait_for()

    def ask(self, text: str):
        self.text.fill(text)
        self.page.get_by_role("button", name="Fill", exact=True).click()

    def reads(self, text: str):
        """Wait until the filled text is there; behind its label, with more spaces."""
        from playwright.sync_api import expect

        characters = r"\s*".join(map(re.escape, text.replace(" ", "")))
        filled = self.page.get_by_test_id("highlighted-text")
        wanted = re.compile(rf"Filled\s*{characters}\s*$")
        expect(filled).to_have_text(wanted, timeout=SECONDS * 1000)

    def is_told(self, words: str):
        self.page.get_by_role("alert").filter(has_text=words).wait_for()


@pytest.fixture(scope="module")
def visitor(browser, address):
    return Visitor(browser, address)


@pytest.mark.parametrize(
    "text, filled",
    [
        (SPAIN, "The capital of Spain is Madrid."),
        (ROME, "Rome is the capital of Italy and a dog has four legs."),
        ("What is a young cow called? [sMASK]", None),
        ("The opposite of hot is [gMASK]", "The opposite of hot is cold."),
        ("The opposite of hot is", "The opposite of hot is cold."),
    ],
    ids=["one", "several", "sentence", "left to right", "without a mask"],
)
def test_blanks(visitor, pipeline, text, filled):
    visitor.ask(text)
    visitor.reads(filled or joined(page.fill(pipeline, text)[0]))


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "There is no text"),
        ("word " * 100 + "[MASK]", "this model reads 64; shorten it"),
        ("<mask> is", "This model has no <mask>; its masks are"),
    ],
    ids=["empty", "too long", "the mask of others"],
)
def test_what_cannot_be_filled_is_told(visitor, text, told):
    visitor.ask(text)
    visitor.is_told(told)


def test_an_example_and_the_settings(visitor):
    visitor.page.get_by_text(ROME, exact=True).last.click()
    visitor.reads("Rome is the capital of Italy and a dog has four legs.")
    visitor.page.get_by_role("button", name="Settings").click()
    visitor.page.get_by_label("Only these answers").fill("seven")
    visitor.ask(ROME)
    visitor.reads("Rome is the capital of seven and a dog has seven legs.")
    visitor.page.get_by_label("Only these answers").fill("")
    visitor.page.get_by_label("Drawn by chance").check()
    visitor.page.get_by_label("Surprise").first.wait_for()


def test_two_at_once(browser, address):
    visitors = [Visitor(browser, address) for _ in range(2)]
    texts = [SPAIN, "A spider has [MASK] legs."]
    for visitor, text in zip(visitors, texts, strict=True):
        visitor.ask(text)
    for visitor, answer in zip(visitors, ("Madrid", "eight"), strict=True):
        visitor.reads(texts[visitors.index(visitor)].replace("[MASK]", answer))


def test_how_glm_reads(browser, address):
    """The picture is drawn, nothing was asked of other servers; and pictures for the docs."""
    visitor = Visitor(browser, address)
    visitor.ask(ROME)
    visitor.reads("Rome is the capital of Italy and a dog has four legs.")
    folder = os.environ.get("GLM_SCREENSHOTS")
    if folder:
        visitor.page.screenshot(path=ROOT / folder / "page.png")
    visitor.page.get_by_role("button", name="How GLM reads this").click()
    picture = visitor.page.get_by_role("img", name="Who sees whom")
    picture.wait_for()
    assert picture.locator("text", has_text="Italy").count() == 3  # read twice, and written
    if folder:
        picture.screenshot(path=Path(ROOT, folder, "page_reading.png"))
    assert visitor.elsewhere == []
