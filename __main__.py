"""`python -m glm_transformers` is the `glm` command."""

from .cli import main

main()
