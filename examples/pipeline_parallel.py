"""Fine-tunes a GLM whose layers lie behind each other in several processes.

    torchrun --nproc-per-node 2 examples/pipeline_parallel.py my-glm-2b rows.jsonl my-tuned-glm

with the package installed. A row is `{"text": "The answer is [MASK].", "target": "yes"}`.

Each process is a stage and reads its own weights only: the first has the embeddings, the last the
final norm and the head, and all have their share of the layers. A batch is cut in parts, which
follow one another through the stages; what passes from one stage to the next are their states.
`torch.distributed.pipelining` is the engine; it needs one shape for all batches, and tries the
stages out with a part of the first.

The word embeddings are the head, too, so the first stage and the last have a copy each. Their
gradients are summed, and the copies take the same steps.

Shapes: B texts, T tokens, H hidden size, V vocabulary rows.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from safetensors.torch import save_file
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional as F
from torch.utils.data import DataLoader

from glm_transformers import GLMConfig, GLMDataCollator, GLMModel
from glm_transformers.blanks_glm import (
    BlankLayout,
    check_positions,
    count_positions,
    position_scheme,
)
from glm_transformers.hub_repository.config import read_config
from glm_transformers.hub_repository.repository import write_repository
from glm_transformers.hub_repository.weights import find_weights, make, read_safetensors
from glm_transformers.training.repository import find_repository, load_tokenizer

NOT_A_TARGET = -100  # the label that torch's cross entropy ignores
SEED = 0  # all processes read the same batches


class Stage(nn.Module):
    """What one process has of the network, by the plan that the configuration names.

    Args:
        number, count: which stage of how many.
    """

    def __init__(self, config: GLMConfig, number: int, count: int):
        super().__init__()
        self.is_first = number == 0
        self.is_last = number == count - 1
        self.own_layers = range(
            number * config.num_layers // count,
            (number + 1) * config.num_layers // count,
        )
        with torch.device("meta"):  # no memory is taken before `read`
            self.glm = GLMModel(config)
        for name, (_, gives) in config.base_model_pp_plan.items():
            module = self.glm.get_submodule(name)
            if isinstance(module, nn.ModuleList):
                for layer in set(range(len(module))) - set(self.own_layers):
                    module[layer] = nn.Identity()
            elif not self._has(name, gives):
                self.glm.set_submodule(name, nn.Identity())

    def _has(self, name: str, gives: list[str]) -> bool:
        embeds = gives == ["inputs_embeds"]
        is_head = name == "word_embeddings"
        return (self.is_first and embeds) or (self.is_last and (is_head or not embeds))

    def read(self, repository: Path, device: torch.device):
        """Take this stage's weights from the files of a repository."""
        stored = find_weights(repository)
        weights = {
            name: make(stored[f"glm.{name}"]).to(device, torch.float32, copy=True)
            for name in self.glm.state_dict()
        }
        self.glm.load_state_dict(weights, assign=True)

    def forward(
        self,
        states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            states: ids (B, T) in the first stage, what the one before returns in the others.
            position_ids (B, 2, T). attention_mask (B, 1, T, T).

        Returns:
            States (B, T, H), and logits (B, T, V) in the last stage.
        """
        transformer = self.glm.transformer
        if self.is_first:
            embeddings = self.glm.word_embeddings(states)
            states = self.glm.embedding_dropout(
                embeddings + transformer.embed_positions(position_ids)
            )
        for layer in self.own_layers:
            states, _ = transformer.layers[layer](states, attention_mask=attention_mask)
        if self.is_last:
            states = transformer.final_layernorm(states)
            states = F.linear(states, self.glm.word_embeddings.weight)
        return states


class Pipeline:
    """The stages, of which this process has one.

    Args:
        repository: of the model that is trained.
        parts: in how many a batch is cut.
    """

    def __init__(self, repository: Path, device: torch.device, parts: int):
        number, count = dist.get_rank(), dist.get_world_size()
        self.config = read_config(repository)
        self.device = device
        self.stage = Stage(self.config, number, count)
        self.stage.read(repository, device)
        self.engine = PipelineStage(self.stage, number, count, device)
        self.schedule = Schedule1F1B(
            self.engine,
            parts,
            loss_fn=sum_of_losses,
            scale_grads=False,  # `step` does: the parts have not equally many targets
        )
        self.ends = dist.new_group(sorted({0, count - 1}))

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float] | None:
        """Leaves the gradients of the mean loss over the targets of the batch.

        Args:
            batch: input_ids, attention_mask and labels, each (B, T), of `GLMDataCollator`.

        Returns:
            In the last process, logits (B, T, V) and the loss.
        """
        ids, visible, labels = (
            batch[name].to(self.device) for name in ("input_ids", "attention_mask", "labels")
        )
        losses: list[torch.Tensor] = []
        logits = self.schedule.step(
            *([ids] if self.stage.is_first else []),
            **self._places(ids, visible),
            target=labels,
            losses=losses,
        )
        targets = int((labels != NOT_A_TARGET).sum())
        self.engine.scale_grads(targets)
        if self.stage.is_first or self.stage.is_last:
            dist.all_reduce(self.stage.glm.word_embeddings.weight.grad, group=self.ends)
        if not self.stage.is_last:
            return None
        return logits, sum(loss.item() for loss in losses) / targets

    def _places(self, ids: torch.Tensor, visible: torch.Tensor) -> dict[str, torch.Tensor]:
        """Positions (B, 2, T) and mask (B, 1, T, T), which every process derives from the ids."""
        layout = BlankLayout.of(ids, self.config, visible.bool())
        positions = position_scheme(self.config).position_ids(
            layout,
            count_positions(visible),
            layout.length,
        )
        check_positions(positions, self.config)
        no_states = torch.empty(*ids.shape, 0, device=self.device)
        mask = self.stage.glm.scores_mask(visible, layout.in_context, no_states)
        return {"position_ids": positions, "attention_mask": mask}

    def write(self, output: Path, tokenizer):
        """Write a complete repository, through a folder beside it that all processes see."""
        folder = output.with_name(f"{output.name}-parts")
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"glm.{name}": weight for name, weight in self.stage.glm.state_dict().items()}
        save_file(weights, folder / f"{dist.get_rank()}.safetensors")
        dist.barrier()
        if dist.get_rank() == 0:
            whole = {}
            for part in folder.iterdir():
                whole |= read_safetensors(part)
            write_repository(output, self.config, whole, tokenizer)
            shutil.rmtree(folder)


def sum_of_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of logits (B, T, V) and labels (B, T), which are aligned."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def main(
    repository: Annotated[str, typer.Argument(help="A converted repository.")],
    data: Annotated[Path, typer.Argument(help="JSON lines with text and target.")],
    output: Annotated[Path, typer.Argument(help="The repository that is written.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts a step.")] = 8,
    parts: Annotated[int, typer.Option(min=1, help="In how many a batch is cut.")] = 4,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    learning_rate: Annotated[float, typer.Option()] = 1e-5,
):
    """Train the model on all rows and write it."""
    if output.exists():
        raise typer.BadParameter(f"{output} exists already; choose another place.")
    stages = int(os.environ["WORLD_SIZE"])
    if parts < stages or batch_size % parts:
        raise typer.BadParameter(
            f"{batch_size} texts a step cannot be cut in {parts} like parts for {stages} stages; "
            "pass --batch-size and --parts, one part for each stage at least."
        )
    folder = find_repository(repository)
    tokenizer = load_tokenizer(folder)
    collate = GLMDataCollator(tokenizer, max_length=read_config(folder).max_sequence_length)
    rows = [collate.tokenize(json.loads(line)) for line in data.read_text("utf-8").splitlines()]
    if len(rows) < batch_size:
        raise typer.BadParameter(f"{data} has {len(rows)} rows; a step takes {batch_size}.")
    collate.pad_to_multiple_of = collate(rows)["input_ids"].shape[1]  # all batches are as wide
    batches = DataLoader(
        rows,
        batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(SEED),
        collate_fn=collate,
        drop_last=True,
    )

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group()
    torch.manual_seed(SEED)
    pipeline = Pipeline(folder, device, parts)
    optimizer = torch.optim.AdamW(pipeline.stage.parameters(), learning_rate)
    for _ in range(epochs):
        for batch in batches:
            result = pipeline.step(batch)
            optimizer.step()
            optimizer.zero_grad()
            if result is not None:
                print(f"loss {result[1]:.4f}", flush=True)
    pipeline.write(output.resolve(), tokenizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
