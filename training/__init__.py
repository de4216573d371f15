"""Pretraining by autoregressive blank infilling: the objective, the data, the recipe."""

from .blank_infilling import RECIPES, BlankInfillingCollator, Recipe

__all__ = ["RECIPES", "BlankInfillingCollator", "Recipe"]
