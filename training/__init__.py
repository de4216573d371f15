"""Pretraining by autoregressive blank infilling: the objective, the data, the recipe."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .adapters import add_lora as add_lora
    from .adapters import merge as merge
    from .adapters import save_adapter as save_adapter
    from .blank_infilling import BlankInfillingCollator as BlankInfillingCollator
    from .prompts import ContinuousPrompt as ContinuousPrompt
    from .recipe import RECIPES as RECIPES
    from .recipe import Recipe as Recipe
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "BlankInfillingCollator": ".blank_infilling",
            "ContinuousPrompt": ".prompts",
            "RECIPES": ".recipe",
            "Recipe": ".recipe",
            "add_lora": ".adapters",
            "merge": ".adapters",
            "save_adapter": ".adapters",
        },
    )
