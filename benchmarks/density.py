"""How dense the shipped files are to read, beside the library's own GPT-2 and Llama.

    python benchmarks/density.py

Nodes are those of Python's syntax tree, less the marks for loading and storing a name; code lines
are those that are neither empty nor only a comment.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = 100  # columns
METHODS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.AST) -> list[ast.Expr]:
    """The expressions that are docstrings."""
    bodies = (getattr(node, "body", None) for node in ast.walk(tree))
    firsts = (body[0] for body in bodies if isinstance(body, list) and body)
    return [
        first
        for first in firsts
        if isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ]


def code_lines(text: str) -> int:
    """Lines that are neither empty nor only a comment."""
    stripped = (line.strip() for line in text.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in stripped)


def longest_method(tree: ast.AST) -> tuple[int, str]:
    """Lines of the longest function, its signature counted and its docstring left out; its name."""
    longest = (0, "")
    for node in ast.walk(tree):
        if isinstance(node, METHODS):
            length = node.end_lineno - node.lineno + 1
            own = [text for text in docstrings(node) if text is node.body[0]]
            length -= sum(text.end_lineno - text.lineno + 1 for text in own)
            longest = max(longest, (length, node.name))
    return longest


def measure(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = code_lines(text)
    nodes = sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))
    long = sum(len(line) > LONG for line in text.splitlines())
    longest = longest_method(tree)
    share = 100 * long / len(text.splitlines())
    return (
        f"| {file.name} | {lines} | {nodes / lines:.1f} | {share:.1f} | "
        f"{text.count('fmt: skip')} | {longest[0]} `{longest[1]}` |"
    )


def main():
    models = Path(find_spec("transformers").origin).parent / "models"
    print("| file | code lines | nodes a line | lines over 100, % | fmt: skip | longest method |")
    print("|---|---:|---:|---:|---:|---:|")
    for file in sorted(ROOT.glob("*_glm.py")):
        print(measure(file))
    for name in ("gpt2", "llama"):
        print(measure(models / name / f"modeling_{name}.py"))


if __name__ == "__main__":
    main()
