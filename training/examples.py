"""Examples of a task: read from files or the Hub, and expanded into what is learnt from."""

from .templates import Example


def mirror_copa(examples: list[Example]) -> list[Example]:
    """COPA is learnt from each example, and then from all with their choices exchanged."""
    mirrored = [
        {
            **example,
            "choice1": example["choice2"],
            "choice2": example["choice1"],
            "label": 1 - int(example["label"]),
        }
        for example in examples
    ]
    return [*examples, *mirrored]


def record_answers(examples: list[Example]) -> list[Example]:
    return examples


def wsc_positives(examples: list[Example]) -> list[Example]:
    return examples
