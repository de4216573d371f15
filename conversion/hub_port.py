"""Reads a repository of the old Hub port, whose config.json has the model type "glm"."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ..hub_repository.errors import RepositoryError
from ..hub_repository.files import read_json, read_text
from ..hub_repository.weights import INDEX, WEIGHTS, LazyTensor, read_safetensors, read_weight_map
from .checkpoint import add_parameter, find_module, merge_ranks
from .tokenizers import VOCABULARIES
from .torch_file import read_torch_file

logger = logging.getLogger(__name__)

OLD_WEIGHTS, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# What our configuration keeps of the old one, beside the sizes, which the tensors tell; the last
# four ask for what no released checkpoint uses, and our configuration refuses them.
KEPT_OPTIONS = (
    "attention_scale",
    "embedding_dropout_prob",
    "attention_dropout_prob",
    "output_dropout_prob",
    "initializer_range",
    "pool_token",
    "id2label",
    "label2id",
    "relative_encoding",
    "performer",
    "sentinel_token",
    "spell_length",
)
# The port's classifier has two layers beside the network; what they are called here.
PORT_HEAD = re.compile(r"(dense|out_proj)\.(weight|bias)")
OUR_NAMES = {"dense": "pool_layer", "out_proj": "multichoice_head"}
TOKENIZER_CONFIGS = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")


@dataclass(frozen=True)
class HubPort:
    """
    config: the old config.json.
    family: of the tokenizer whose files are there, None if there are none.
    """

    folder: Path
    config: dict
    files: list[Path]
    family: str | None

    @property
    def options(self) -> dict:
        """What our configuration keeps."""
        return {
            name: self.config[name] for name in KEPT_OPTIONS if self.config.get(name) is not None
        }

    @property
    def task_mask(self) -> bool:
        """Whether the tokenizer knows `[gMASK]`."""
        files = [self.folder / name for name in TOKENIZER_CONFIGS]
        return any('"[gMASK]"' in read_text(file) for file in files if file.is_file())

    def read_parameters(self) -> dict[str, LazyTensor]:
        """The parameters under their released names; no tensor is read yet."""
        found: dict[str, LazyTensor] = {}
        left_out: list[str] = []
        for file in self.files:
            tensors = (
                read_safetensors(file)
                if file.suffix == ".safetensors"
                else find_module(read_torch_file(file))
            )
            for name, tensor in tensors.items():
                head = PORT_HEAD.fullmatch(name)
                if head and not self.is_classifier:
                    left_out.append(name)
                    continue
                ours = f"{OUR_NAMES[head[1]]}.{head[2]}" if head else name
                add_parameter(found, ours, tensor)
        if left_out:
            logger.warning(
                "%s are left out: they are of a classifier, and config.json names none among its "
                "architectures.",
                ", ".join(left_out),
            )
        return merge_ranks([found])

    @property
    def is_classifier(self) -> bool:
        names = self.config.get("architectures")
        return isinstance(names, list) and "GLMForSequenceClassification" in names

    def check_tokenizer(self, tokenizer):
        """Raise if a token has another id in the old tokenizer's files."""
        file = self.folder / "added_tokens.json"
        for token, id in (read_json(file) if file.is_file() else {}).items():
            ours = tokenizer.convert_tokens_to_ids(token)
            if ours not in (None, tokenizer.unk_token_id, id):
                raise RepositoryError(
                    f"{token} has id {id} in {file} and {ours} in the {self.family} tokenizer; "
                    "pass --tokenizer and --vocab."
                )


def find_hub_port(folder: Path) -> HubPort | None:
    """The old repository in `folder`; None if the folder is none.

    Raises:
        RepositoryError: if it is a repository of another kind, or has no weights.
    """
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise RepositoryError(
            f'{folder / "config.json"} names no model_type; write "model_type": "glm" into it if '
            "this is a repository of the old GLM port."
        )
    if config["model_type"] != "glm":
        raise RepositoryError(
            f'{folder} is a repository with model type "{config["model_type"]}"; only those of '
            'the old GLM port, with "glm", need converting.'
        )
    for index in (INDEX, OLD_INDEX):
        if (folder / index).is_file():
            files = [
                folder / name for name in sorted(set(read_weight_map(folder / index).values()))
            ]
            break
    else:
        files = [folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()][:1]
    if not files:
        raise RepositoryError(
            f"{folder} holds no {OLD_WEIGHTS} and no {WEIGHTS}; download the repository completely."
        )
    return HubPort(folder, config, files, find_family(folder))


def find_family(folder: Path) -> str | None:
    """The family whose vocabulary files are there.

    GPT-2 and RoBERTa name theirs alike: RoBERTa's has an entry `<mask>`.
    """
    present = [
        family
        for family, (groups, _) in VOCABULARIES.items()
        if all(any((folder / name).is_file() for name in group) for group in groups)
    ]
    if "gpt2" in present and (folder / "vocab.json").is_file():
        return "roberta" if "<mask>" in read_json(folder / "vocab.json") else "gpt2"
    return present[0] if present else None
