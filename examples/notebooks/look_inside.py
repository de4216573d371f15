# %% [markdown]
# # Look inside GLM
#
# How GLM reads a text with a blank: where its tokens stand, who sees whom, what it holds likely,
# and where it looks.

# %%
from pathlib import Path

from glm_transformers.demo import run_demo

run_demo(Path("glm-demo"))

# %%
import matplotlib.pyplot as plt
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("glm-demo", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(
    "glm-demo",
    trust_remote_code=True,
    dtype=torch.float32,
    attn_implementation="eager",  # the only one that returns its attention
).eval()

# %% [markdown]
# ## Positions, and who sees whom
#
# The answer to a blank, its piece, stands behind the text. Every token has two positions: its place
# in the text, or that of its blank; and its place in the piece, from 1 on, or 0 in the text. The
# text sees the text. A token of a piece sees the text, the pieces before, and its own piece so far.

# %%
from rich.console import Console

from glm_transformers.training.options import Preview
from glm_transformers.training.preview import draw, make_example, make_picture, make_table

text = "Paris is the capital of France and Rome is the capital of Italy."
example = make_example(Preview("glm-demo", text=text, mode="token", seed=3))
console = Console(width=80)
console.print(make_table(example))
console.print(make_picture(example))

# %% [markdown]
# `draw` makes a picture of the same; so does `glm preview --png`.

# %%
draw(example, "who_sees_whom.png")
plt.figure(figsize=(8, 8))
plt.imshow(plt.imread("who_sees_whom.png"))
plt.axis("off")

# %% [markdown]
# ## What it holds likely
#
# The token behind `<|startofpiece|>` is the first of the answer. The model reads the positions from
# the ids.

# %%
question = "The capital of Italy is [MASK]."
context = tokenizer(question, return_tensors="pt").input_ids  # (1, S)
ids = torch.cat([context, torch.tensor([[tokenizer.sop_token_id]])], dim=1)  # (1, S + 1)
with torch.no_grad():
    output = model(ids, output_attentions=True)
probabilities = output.logits[0, -1].softmax(-1)  # (V,)
likely = probabilities.topk(5)
first_tokens = [tokenizer.decode([id]) for id in likely.indices.tolist()]
for token, probability in zip(first_tokens, likely.values.tolist(), strict=True):
    print(f"{token!r:<12} {probability:.4f}")

# %% [markdown]
# Whole answers are compared by the log-probability of all their tokens:

# %%
from glm_transformers.evaluation import log_likelihood

candidates = [" Rome", " Paris", " eight"]
scores = [
    log_likelihood(model, tokenizer, [question], [candidate])[0][0].log_prob
    for candidate in candidates
]
for candidate, score in zip(candidates, scores, strict=True):
    print(f"{candidate:<8} {score:8.3f}")

# %% [markdown]
# ## Where it looks
#
# The attention of `<|startofpiece|>` to each token of the text in each layer, the mean of its
# heads.

# %%
attention = torch.stack(output.attentions)[:, 0, :, -1].mean(1)  # (L, S + 1)
tokens = [tokenizer.decode([id]) for id in ids[0].tolist()]
figure, axis = plt.subplots(figsize=(8, 3))
axis.imshow(attention, cmap="Blues", vmin=0)
axis.set_xticks(range(len(tokens)), tokens, rotation=90)
axis.set_yticks(range(len(attention)), [f"layer {n}" for n in range(1, len(attention) + 1)])
figure.tight_layout()
