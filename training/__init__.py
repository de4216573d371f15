"""Pretraining by autoregressive blank infilling: the objective, the data, the recipe."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .blank_infilling import BlankInfillingCollator as BlankInfillingCollator
    from .recipe import RECIPES as RECIPES
    from .recipe import Recipe as Recipe
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "BlankInfillingCollator": ".blank_infilling",
            "RECIPES": ".recipe",
            "Recipe": ".recipe",
        },
    )
