# %% [markdown]
# # Fill blanks
#
# `glm demo` converts a small checkpoint that comes along to the repository `glm-demo`. The next
# cell does the same.

# %%
from pathlib import Path

from glm_transformers.demo import run_demo

run_demo(Path("glm-demo"))

# %% [markdown]
# A repository loads like any other model of Transformers, here and without this package.

# %%
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("glm-demo", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained("glm-demo", trust_remote_code=True).eval()
tokenizer.masks

# %% [markdown]
# ## Three masks
#
# `[MASK]` is a blank of a few words, `[sMASK]` one or more sentences, and `[gMASK]` at the end
# continues the text. All blanks of all texts are filled in one call: each piece reads the text
# around all blanks, and the pieces before it.

# %%
texts = [
    "[MASK] is the capital of Italy and the river [MASK] flows through it.",
    "What is a young cow called? [sMASK]",
    "The opposite of hot is [gMASK]",
]
inputs = tokenizer(texts, padding=True, return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=40)
answers = tokenizer.decode_pieces(outputs)
for text, pieces in zip(texts, answers, strict=True):
    print(pieces, "->", tokenizer.fill(text, pieces))

# %% [markdown]
# What `generate` returns are ids: the text, then the pieces from `<|startofpiece|>` to
# `<|endofpiece|>`.

# %%
print(tokenizer.decode(outputs[0]))

# %% [markdown]
# ## Other answers
#
# Everything of `generate` works: sampling, beams, several answers to one text.

# %%
import torch

torch.manual_seed(0)
inputs = tokenizer("A [MASK] has four legs.", return_tensors="pt")
sampled = model.generate(
    **inputs,
    max_new_tokens=8,
    do_sample=True,
    num_return_sequences=5,
)
drawn = [pieces[0] for pieces in tokenizer.decode_pieces(sampled)]
print("drawn:", drawn)

best = model.generate(**inputs, max_new_tokens=8, num_beams=5, num_return_sequences=5)
ranked = [pieces[0] for pieces in tokenizer.decode_pieces(best)]
print("the best:", ranked)

# %% [markdown]
# ## The pipeline
#
# It takes texts and gives texts; a text without a mask is continued.

# %%
from transformers import pipeline

fill = pipeline("text2text-generation", model="glm-demo", trust_remote_code=True)
results = fill(["A spider has [MASK] legs.", "The capital of Japan is"], max_new_tokens=12)
for result in results:
    print(result["filled_text"])
