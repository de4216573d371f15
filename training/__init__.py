"""Pretraining by autoregressive blank infilling, and fine-tuning on tasks: objectives and data."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .adapters import add_lora as add_lora
    from .adapters import merge as merge
    from .adapters import save_adapter as save_adapter
    from .blank_infilling import BlankInfillingCollator as BlankInfillingCollator
    from .examples import read_examples as read_examples
    from .own_tasks import read_task as read_task
    from .patterns import MASK as MASK
    from .patterns import SENTENCE as SENTENCE
    from .patterns import Cut as Cut
    from .patterns import Pattern as Pattern
    from .prompts import ContinuousPrompt as ContinuousPrompt
    from .recipe import RECIPES as RECIPES
    from .recipe import Recipe as Recipe
    from .task_table import TASKS as TASKS
    from .tasks import Encoded as Encoded
    from .tasks import Settings as Settings
    from .tasks import Task as Task
    from .tasks import encode as encode
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
            "Cut": ".patterns",
            "Encoded": ".tasks",
            "MASK": ".patterns",
            "Pattern": ".patterns",
            "SENTENCE": ".patterns",
            "Settings": ".tasks",
            "TASKS": ".task_table",
            "Task": ".tasks",
            "encode": ".tasks",
            "read_examples": ".examples",
            "read_task": ".own_tasks",
        },
    )
