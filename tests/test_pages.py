"""The pages of the site: what they show runs and prints what stands below it; all can be found."""

import html
import re

import pytest
from checkout import ROOT
from made import make_checkpoint, make_parameters, make_vocabulary
from typer.testing import CliRunner

from glm_transformers.cli import app
from glm_transformers.conversion.released import RELEASED

DOCS = ROOT / "docs"
SHOWN = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)


def run_page(name: str, capsys) -> int:
    """Run the Python of a page, block by block; how many outputs it shows, which must be right."""
    names: dict = {}
    shown = 0
    for code, printed in SHOWN.findall((DOCS / name).read_text(encoding="utf-8")):
        exec(code, names)
        out = capsys.readouterr().out
        if printed:
            assert out == printed, code
            shown += 1
    return shown


@pytest.mark.parametrize(
    "name, outputs",
    [("index.md", 1), ("running.md", 7), ("from_original.md", 0)],
)
def test_pages_on_the_demo(demo_repository, tmp_path, monkeypatch, capsys, name, outputs):
    (tmp_path / demo_repository.name).symlink_to(demo_repository)
    monkeypatch.chdir(tmp_path)
    assert run_page(name, capsys) == outputs


@pytest.mark.parametrize("name", ["from_hub_port.md", "own_loops.md"])
def test_pages_on_a_repository(made_repository, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "my-glm-2b").symlink_to(made_repository)
    monkeypatch.chdir(tmp_path)
    run_page(name, capsys)


def test_the_page_on_converting(tmp_path, monkeypatch, capsys):
    """Its commands in their order, then its Python; the small model has 4 heads."""
    make_checkpoint(tmp_path / "path/to/glm-2b", make_parameters(), ranks=2)
    make_vocabulary(tmp_path / "path/to/vocabulary")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", (DOCS / "converting.md").read_text(), re.DOTALL)
    commands = [line.split() for line in block.splitlines()]
    assert [command[1] for command in commands] == ["convert", "verify", "export"]
    commands[0] += ["--num-attention-heads", "4"]
    for _, *arguments in commands:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    run_page("converting.md", capsys)
    assert (tmp_path / "my-own" / "README.md").is_file()


def test_the_table_of_released_models():
    text = (DOCS / "converting.md").read_text(encoding="utf-8")
    for name, model in RELEASED.items():
        sizes = (
            f"{model.parameters / 1e6:.0f}M",
            model.layers,
            model.hidden_size,
            model.num_attention_heads,
            model.positions,
            model.tokenizer,
            ", ".join(f"`{mask}`" for mask in model.masks),
        )
        assert f"| `{name}` | {' | '.join(map(str, sizes))} |" in text


def test_the_chinese_page(reference, tmp_path, monkeypatch, capsys):
    """Its first commands and its Python, on a small golden model of the other Chinese layout."""
    text = (DOCS / "zh.md").read_text(encoding="utf-8")
    (convert,) = re.findall(r"^glm (convert .*)$", text, flags=re.MULTILINE)
    arguments = convert.split()
    arguments[1] = str(reference / "checkpoints/tiny-chinese-10b-fp16")
    arguments[arguments.index("--vocab") + 1] = str(reference / "vocab")
    arguments[arguments.index("--model") + 1] = "glm-10b-chinese"
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*arguments, "--num-attention-heads", "4"])
    assert result.exit_code == 0, result.output
    run_page("zh.md", capsys)


def test_the_picture_is_what_the_demo_prints(tmp_path, monkeypatch, capsys):
    """`python examples/draw_demo.py docs/demo.svg` draws it again."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from draw_demo import run_recorded

    picture = (DOCS / "demo.svg").read_text(encoding="utf-8")
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "").split("-->")[1]
    shown = html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture)))
    printed = run_recorded(tmp_path / "glm-demo").export_text()
    assert re.sub(r"\s", "", printed) in re.sub(r"\s", "", shown)


# --- The site -------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation():
    """And nothing is that is not there; `mkdocs build --strict` checks the links, in .ci/run."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- .*: (\S+\.md)$", settings, flags=re.MULTILINE))
    assert {page.name for page in DOCS.glob("*.md")} <= named
    for name in named:
        assert (DOCS / name).is_file() or (ROOT / name).is_file(), name


def test_links_are_right_on_github():
    """Relative ones, of pages in any folder."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"), *ROOT.glob("examples/*/*.md")]
    assert len(pages) > 15
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}"
