"""What the site does with links that leave docs/: on GitHub they are right as they are.

The pages and programs that they lead to lie in other folders of the project. The site has these
folders beside the pages, because a site of MkDocs has one folder of pages at its top.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

PROJECT = Path(__file__).resolve().parent.parent
BESIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
    "benchmarks/*.py",
    "examples/*.md",
    "examples/*.py",
    "examples/notebooks/*",
    "tests/golden/README.md",
)


def on_files(files, config):
    """Adds what lies beside docs/."""
    for pattern in BESIDE:
        for path in sorted(PROJECT.glob(pattern)):
            if path.is_file():
                name = path.relative_to(PROJECT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between docs/ and what lies beside it into those of the site."""
    if page.file.generated_by is None:  # of docs/
        return markdown.replace("](../", "](")
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
