"""What the commands of this folder are told; imports no library, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Literal

from ..training.options import Options, about


@dataclass
class Serving(Options):
    """What `glm serve` is told.

    repository: a converted repository, a folder or a name on the Hub.
    host, port: where the server listens; port 0 is any that is free.
    batch_size: texts that are filled at once, if so many wait.
    queue: while so many texts wait, requests are refused.
    timeout: seconds from a request to its answer.
    """

    repository: str = field(metadata=about("A converted repository."))
    host: str = field(
        default="127.0.0.1",
        metadata=about("Where it listens; 0.0.0.0 for other machines, too."),
    )
    port: int = field(default=8000, metadata=about("0 for any free one.", least=0, most=65535))
    batch_size: int = field(default=16, metadata=about("Texts of a batch, at most.", least=1))
    queue: int = field(
        default=256, metadata=about("Texts that wait, before requests are refused.", least=1)
    )
    timeout: float = field(
        default=60.0, metadata=about("Seconds until an answer must be there.", least=0.001)
    )
    dtype: Literal["float32", "float16", "bfloat16"] = field(
        default="float32", metadata=about("Type of the arithmetic.")
    )
    device: str | None = field(
        default=None,
        metadata=about("For example cuda:1 or cpu; by default a GPU, if there is one."),
    )
    quantize: Literal["int8"] | None = field(
        default=None,
        metadata=about("Weights in fewer bytes: faster and smaller, a little less exact."),
    )
