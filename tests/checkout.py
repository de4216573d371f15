"""Makes the checkout importable as `glm_transformers`, where that is not installed.

The repository root is the package, and its folder may have any name. A program that a test starts
imports this file too; `ENVIRONMENT` lets it find it.
"""

import importlib.util
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}

if importlib.util.find_spec("glm_transformers") is None:
    spec = importlib.util.spec_from_file_location(
        "glm_transformers",
        ROOT / "__init__.py",
        submodule_search_locations=[str(ROOT)],
    )
    assert spec is not None and spec.loader is not None
    sys.modules["glm_transformers"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
