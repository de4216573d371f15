"""`glm fill` answers every text with its blanks filled, or with one sentence."""

import io
import json
import os
import pty
import re
import shlex
import sys
import unicodedata

import pytest
import torch
from checkout import ROOT
from typer.testing import CliRunner

from glm_transformers.apps.fill import percent, printable, read_texts
from glm_transformers.apps.options import Filling
from glm_transformers.apps.pipeline import open_pipeline
from glm_transformers.cli import app

SPAIN = "The capital of Spain is [MASK]."
SHOWN_LIVE = "\x1b[?25h"  # shows the cursor again, after what is replaced


@pytest.fixture(scope="module")
def pipeline(demo_repository):
    return open_pipeline(str(demo_repository), device="cpu")


@pytest.fixture
def run(pipeline, monkeypatch):
    """`run(arguments, lines)`: the result of the command, with a model that is loaded once."""
    monkeypatch.setattr("glm_transformers.apps.fill.open_pipeline", lambda *_: pipeline)

    def invoke(*arguments, lines=""):
        return CliRunner().invoke(app, ["fill", "demo", *map(str, arguments)], input=lines)

    return invoke


def sentence(result) -> str:
    """What an error says: one sentence, and nothing of what was to be filled."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    return result.stderr


# --- Texts and answers ----------------------------------------------------------------------------


def test_the_command_itself(demo_repository):
    result = CliRunner().invoke(app, ["fill", str(demo_repository), SPAIN, "--device", "cpu"])
    assert result.stdout == "The capital of Spain is Madrid.\n"


def test_every_kind_of_blank(run):
    result = run(
        "Rome is the capital of [MASK] and a dog has [MASK] legs.",
        "What is a young cow called? [sMASK]",
        "The opposite of hot is [gMASK]",
        "The opposite of hot is",  # continued, as by the pipeline
    )
    first, second, *continued = result.stdout.splitlines()
    assert first == "Rome is the capital of Italy and a dog has four legs."
    assert "calf" in second
    assert continued == ["The opposite of hot is cold."] * 2


def test_a_line_of_standard_input_is_a_line_of_the_answer(run):
    lines = f"{SPAIN}\n\n\tA dog has [MASK] legs.\n"
    assert run(lines=lines).stdout.splitlines() == [
        "The capital of Spain is Madrid.",
        "",
        "\tA dog has four legs.",
    ]
    first, empty, last = map(json.loads, run("--json", lines=lines).stdout.splitlines())
    assert first == {
        "text": SPAIN,
        "generated_text": "Madrid",
        "blanks": ["Madrid"],
        "filled_text": "The capital of Spain is Madrid.",
        "finished": True,
    }
    assert empty["text"] == empty["filled_text"] == "" and empty["blanks"] == []
    assert last["blanks"] == ["four"]


def test_lines_of_windows_end_at_their_end(monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"a [MASK]\r\n\r\nb\n"), encoding="utf-8", newline="\n")
    monkeypatch.setattr(sys, "stdin", lines)
    assert read_texts(Filling("demo")) == ["a [MASK]", "", "b"]


def test_a_terminal_is_sent_no_control_characters():
    controls = "".join(map(chr, [*range(32), *range(0x7F, 0xA0)]))
    shown = printable(controls).plain
    assert len(shown) == len(controls)
    assert {one for one in shown if unicodedata.category(one) == "Cc"} == {"\t", "\n"}


def test_a_seed_draws_the_same_again(run):
    texts = ["[sMASK]"] * 3
    drawn = [run("--sample", "--seed", seed, *texts).stdout for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].splitlines())) > 1
    assert "pass --sample with it" in sentence(run("--seed", 1, *texts))


def test_answers_that_are_cut_off_or_empty_are_told_of(run):
    result = run("[sMASK] [MASK]", "--max-new-tokens", 5)
    assert "--max-new-tokens" in result.stderr
    assert not json.loads(run("[sMASK] [MASK]", "--max-new-tokens", 5, "--json").stdout)["finished"]
    assert run(SPAIN).stderr == ""
    assert "leaves a blank empty" in run("The capital of Spain is [MASK][MASK].").stderr
    assert "text without a mask" in run("The capital of France is ___.").stderr


def test_lengths(run):
    assert len(run("[sMASK]", "--max-piece-length", 2).stdout.split()) <= 2
    longer = run("A dog has [MASK] legs.", "--min-piece-length", 3).stdout
    assert len(longer) > len("A dog has four legs.\n")


def test_alternatives(run):
    text = "Rome is the capital of [MASK] and a dog has [MASK] legs."
    result = json.loads(run(text, "--all", 3, "--json").stdout)
    best = [answers[0]["answer"] for answers in result["alternatives"]]
    assert best == result["blanks"] == ["Italy", "four"]
    first, *rows = run(text, "--all", 3).stdout.splitlines()
    assert first == result["filled_text"]
    shown = [row.split() for row in rows]
    assert [row[0] for row in shown if len(row) == 3] == ["1", "2"]
    assert [row[-2:] for row in shown] == [
        [entry["answer"], percent(entry["probability"])]
        for answers in result["alternatives"]
        for entry in answers
    ]
    assert percent(0.9951) == "99.5%" and percent(1e-9) == "<0.1%"
    assert "drop --sample" in sentence(run(text, "--all", 3, "--sample"))


def test_allowed_answers_and_bad_words(run):
    allowed = ["--allowed-answers", "two|six"]
    two = "A dog has [MASK] legs and a cat has [MASK] legs."
    assert set(re.findall("two|four|six", run(two, *allowed).stdout)) <= {"two", "six"}
    each = [*allowed, "--allowed-answers", "seven"]
    assert "a cat has seven legs" in run(two, *each).stdout
    wrong = sentence(run(two, SPAIN, *each))
    assert wrong.startswith("Text 2: --allowed-answers is there 2 times, for 1 blank; give")
    assert "Madrid" not in run(SPAIN, "--bad-words", "Madrid", "--bad-words", "Paris").stdout


# --- What people type -----------------------------------------------------------------------------

FILLED = [
    "🙂 [MASK]",
    "I like 🍕 and [MASK] 🏳️‍🌈.",
    "法国的首都是[MASK]。",
    "[MASK] " * 12,
    "[MASK]",
    "[sMASK]",
    "[MASK][MASK]",
    "[gMASK] at the start",
    "The [sMASK] and [gMASK]",
    "Paris",
    "a\tb\t[MASK]",
    "a \x1b[31m red \x07 \x00 [MASK]",
    "a\r\nb [MASK]",
    "\n\n[MASK]\n",
    "[bold]A cat has [MASK] legs.[/bold] [/]",
    "A {} %s \\n [MASK]",
    "'; DROP TABLE x; -- [MASK]",
    "https://x.y/?a=[MASK]&b=1",
    "[CLS] [SEP] [MASK]",
    "1+1=[MASK]",
    "“[MASK]”, she said",
    "\u202e rtl a\u0301 \u200b [MASK]",
    "--help [MASK]",
]
REFUSED = {
    "": "no text",
    " \t ": "no text",
    "word " * 2000 + "[MASK]": r"\d{4} tokens and this model reads 64; shorten it",
    "a <|startofpiece|> [MASK]": "holds <|startofpiece|>",
    "a <|endofpiece|>": "holds <|endofpiece|>",
    "<|endoftext|>": "holds <|endoftext|>",
    "[mask] is": r"no \[mask\]; its masks are \[MASK\], \[gMASK\], \[sMASK\]",
    "<mask> is": "no <mask>; its masks are",
    "[xMASK]": r"no \[xMASK\]",
    "[MASK1] and [MASK2]": r"no \[MASK1\]",
    "[MASK_0] is": r"no \[MASK_0\]",
    "It is [ MASK ].": r"no \[ MASK \]",
    "<extra_id_0> is": "no <extra_id_0>",
    "\udcff [MASK]": "no UTF-8",
}


def test_texts_of_all_kinds_are_filled(run):
    result = run("--", *FILLED)
    assert result.exit_code == 0, result.output
    assert "A cat has four legs.[/bold] [/]" in result.stdout
    assert not re.search(r"\[[gs]?MASK\]", result.stdout)


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:20]))
def test_texts_that_cannot_be_filled_are_told_in_a_sentence(run, text):
    assert re.search(REFUSED[text], sentence(run("--", text)))


def test_nothing_is_filled_where_a_text_is_wrong(run):
    assert sentence(run(SPAIN, "[mask]")).startswith("Text 2: ")


def test_a_mask_that_the_model_was_not_trained_with(repository):
    """It would be plain text, and the prompt would be continued."""
    result = CliRunner().invoke(
        app, ["fill", str(repository("tiny-bert-fp16")), "[sMASK]", "--device", "cpu"]
    )
    assert "has no [sMASK]; its masks are [MASK]." in sentence(result)


def test_no_text(run):
    assert "no text" in sentence(run(lines="\n \n"))


def test_no_repository(tmp_path):
    result = CliRunner().invoke(app, ["fill", str(tmp_path), SPAIN])
    assert "pass a converted repository" in sentence(result)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has that device")
def test_no_device(demo_repository):
    """Of what torch says of it, several hundred words, the first."""
    told = sentence(
        CliRunner().invoke(app, ["fill", str(demo_repository), SPAIN, "--device", "mps"])
    )
    assert told.startswith("There is no device mps here") and len(told) < 200


# --- The page of the docs -------------------------------------------------------------------------


def test_the_page_of_the_docs(run):
    """What it shows is what is printed; `glm app` is shown by the tests of the page."""
    text = (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
    (questions,) = re.findall(r"cat questions.txt\n(.*?)\$ ", text, flags=re.DOTALL)
    shown = re.findall(
        r"^\$ glm fill glm-demo (.*)\n((?:(?!\$|```).*\n)+)", text, flags=re.MULTILINE
    )
    assert len(shown) == text.count("$ glm fill") == 7
    for command, output in shown:
        arguments, _, lines = command.partition(" < ")
        result = run(*shlex.split(arguments), lines=questions if lines else "")
        assert result.stdout + result.stderr == output, command
    for option in set(re.findall(r"`(--[\w-]+)`", text)) - {"--space", "--host"}:
        assert option in CliRunner().invoke(app, ["fill", "--help"]).stdout


# --- In a terminal --------------------------------------------------------------------------------


def in_terminal(arguments: list[str], typed: list[str]) -> str:
    """What a terminal shows, where each line is typed when the command asks for it.

    The command runs in a fork of this process, which has the libraries.
    """
    process, terminal = pty.fork()
    if process == 0:
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")  # in place of those of pytest
        os.environ.update(TERM="xterm-256color", COLUMNS="200")
        torch.set_num_threads(1)  # the others are not in the fork
        try:
            app(["fill", *arguments], standalone_mode=False)
        finally:
            os._exit(0)
    shown = ""
    while True:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # it has ended
            break
        if typed and shown.endswith("> "):
            os.write(terminal, typed.pop(0).encode())
            shown += "\n"
    os.close(terminal)
    os.waitpid(process, 0)
    return shown


def test_a_conversation_in_a_terminal(run):
    up, end = "\x1b[A", "\x04"
    shown = in_terminal(["demo"], [f"{SPAIN}\r", "\r", "[mask]\r", f"{up}{up}\r", end])
    assert "[MASK] or [gMASK] or [sMASK]" in shown.partition(">")[0]
    kept = shown.split(SHOWN_LIVE)[1:]
    assert len(kept) == 2  # one from the history
    assert all("Spain is \x1b[1;32mMadrid\x1b[0m.\r\n> " in text for text in kept)
    assert shown.count("no [mask]") == 1


def test_blanks_are_filled_one_after_the_other_in_a_terminal(run):
    shown = in_terminal(["demo", "Rome is the capital of [MASK] and a dog has [MASK] legs."], [])
    states = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line) for line in re.split("[\r\n]+", shown)]
    texts = [state for state in states if state.startswith("Rome")]
    assert texts[0] == "Rome is the capital of [MASK] and a dog has [MASK] legs."
    assert "Rome is the capital of Italy and a dog has [MASK] legs." in texts
    assert texts[-1] == "Rome is the capital of Italy and a dog has four legs."
    kept = shown.split(SHOWN_LIVE)[1]
    assert "\x1b[1;32mItaly\x1b[0m and a dog has \x1b[1;32mfour\x1b[0m legs.\r\n" in kept
