"""Run as a program, once for each of two processes: examples/pipeline_parallel.py on a model whose
layers they share equals the model in one.

stages.py REPOSITORY
"""

import sys
from pathlib import Path

import checkout
import torch
import torch.distributed as dist

sys.path.insert(0, str(checkout.ROOT / "examples"))
from pipeline_parallel import Pipeline

from glm_transformers import GLMForConditionalGeneration

MASK, SOP, EOP, EOS = 92, 90, 91, 95  # as in conftest.py
PAD, NO = EOS, -100
IDS = torch.tensor(
    [
        [1, 17, MASK, 23, 5, EOS, SOP, 60, 61],
        [PAD, 1, 9, MASK, 7, EOS, SOP, 62, PAD],
        [1, MASK, 33, MASK, 7, EOS, SOP, 62, SOP],
        [PAD, PAD, 1, MASK, 8, EOS, SOP, PAD, PAD],
    ]
)
REAL = torch.ones_like(IDS)
REAL[1, [0, 8]] = REAL[3, :2] = REAL[3, 7:] = 0
LABELS = torch.full_like(IDS, NO)
LABELS[:, 6:] = torch.tensor([[60, 61, EOP], [62, EOP, NO], [62, EOP, EOP], [EOP, NO, NO]])
BATCH = {"input_ids": IDS, "attention_mask": REAL, "labels": LABELS}


def check_step(pipeline: Pipeline, single: GLMForConditionalGeneration):
    """Logits, loss, the gradient of every weight of this stage; then a step of training."""
    expected = single(**BATCH)
    expected.loss.backward()
    result = pipeline.step(BATCH)
    if result is not None:
        logits, loss = result
        seen = REAL.bool()
        torch.testing.assert_close(logits[seen], expected.logits[seen], atol=1e-5, rtol=0)
        torch.testing.assert_close(loss, float(expected.loss), atol=1e-5, rtol=0)
    whole = dict(single.glm.named_parameters())
    for name, weight in pipeline.stage.glm.named_parameters():
        torch.testing.assert_close(weight.grad, whole[name].grad, atol=1e-5, rtol=0, msg=name)
    for parameters in (pipeline.stage.parameters(), single.parameters()):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    repository = Path(sys.argv[1])
    single = GLMForConditionalGeneration.from_pretrained(repository).eval()
    pipeline = Pipeline(repository, torch.device("cpu"), parts=2)
    pipeline.stage.eval()
    stages = [None] * 2
    dist.all_gather_object(stages, [name for name, _ in pipeline.stage.glm.named_parameters()])
    first, last = map(set, stages)
    assert first & last == {"word_embeddings.weight"}, "only the table is in both"
    assert first | last == {name for name, _ in single.glm.named_parameters()}
    for _ in range(2):  # the second, from the weights that the first left
        check_step(pipeline, single)
    dist.destroy_process_group()
    print("equal")
