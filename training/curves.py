"""The curves of a run as a picture, beside the log that TensorBoard reads."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback

from .metrics import METRICS

PICTURE = "curves.png"
WIDTH, HEIGHT = 6.4, 2.4  # inches, of one panel
Curve = tuple[list[int], list[float]]  # steps, and a value at each


class Curves(TrainerCallback):
    """Draws what was logged when the training ends, that of a continued run from its begin on."""

    def __init__(self):
        import matplotlib.figure  # noqa: F401  Or a library that is missing were told after hours.

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        file = Path(args.output_dir) / PICTURE
        try:
            draw(find_curves(state.log_history), file)
        except Exception as error:  # of any kind: what was trained is not saved yet
            warnings.warn(
                f"{file} could not be drawn ({error}); the log has its numbers.",
                stacklevel=2,
            )


def find_curves(history: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """What was measured under each name.

    Args:
        history: the `log_history` of a `Trainer`.
    """
    curves: dict[str, Curve] = {}
    for entry in history:
        for name in entry.keys() - {"step"}:
            steps, values = curves.setdefault(name, ([], []))
            steps.append(int(entry["step"]))
            values.append(entry[name])
    return curves


def draw(curves: Mapping[str, Curve], file: Path) -> None:
    """Write the losses, the metrics of the validation data and the learning rate, one above the
    other; what was not measured has no panel."""
    from matplotlib.figure import Figure

    of_panels = {
        "loss": [name for name in curves if name.startswith(("loss", "eval_loss"))],
        "percent": [f"eval_{name}" for name in METRICS if f"eval_{name}" in curves],
        "learning rate": [name for name in curves if name == "learning_rate"],
    }
    panels = {title: sorted(names) for title, names in of_panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            marker = "o" if name.startswith("eval_") else ""
            axis.plot(*curves[name], marker=marker, markersize=3, label=label(name))
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if title != "learning rate":
            axis.legend(frameon=False)
    axes[-1].set_xlabel("step")
    figure.savefig(file)


def label(name: str) -> str:
    """What a curve is called: `eval_loss_token` is "validation, token"."""
    kind = "validation" if name.startswith("eval_") else "training"
    what = name.removeprefix("eval_").removeprefix("loss").strip("_").replace("_", " ")
    return f"{kind}, {what}" if what else kind
