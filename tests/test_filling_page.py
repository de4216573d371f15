"""The Python of docs/filling.md runs, on the demo model, and prints what the page shows."""

import re

from checkout import ROOT

PAGE = ROOT / "docs" / "filling.md"


def test_the_page(shell, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    (command,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    shell(command)
    monkeypatch.chdir(shell.folder)
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert len(pairs) == text.count("```python") >= 10
    page: dict = {}
    for code, shown in pairs:
        exec(code, page)
        assert capsys.readouterr().out == shown, code
