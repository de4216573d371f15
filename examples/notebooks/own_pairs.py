# %% [markdown]
# # Fine-tune on your own pairs
#
# The demo model knows capitals in whole sentences. Here it learns to answer a short form that it
# has never read, `France: [MASK]`, from ten pairs. `glm finetune` does the same by one command.

# %%
from pathlib import Path

from glm_transformers.demo import run_demo

run_demo(Path("glm-demo"))

# %% [markdown]
# A pair is a text with a mask and its answer (a list of answers, where there are several masks).

# %%
known = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
}
pairs = [{"text": f"{country}: [MASK]", "target": capital} for country, capital in known.items()]
asked = {"Austria": "Vienna", "Portugal": "Lisbon", "England": "London", "Chile": "Santiago"}

# %% [markdown]
# A model that is trained has float32 weights. The collator makes batches: ids of the texts and the
# answers behind them, and labels for the answers alone.

# %%
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from glm_transformers import GLMDataCollator

tokenizer = AutoTokenizer.from_pretrained("glm-demo", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(
    "glm-demo",
    trust_remote_code=True,
    dtype=torch.float32,
)
collate = GLMDataCollator(tokenizer)
batch = collate(pairs[:2])
for name, tensor in batch.items():
    print(name, tuple(tensor.shape))


# %%
def answers_to(countries):
    texts = [f"{country}: [MASK]" for country in countries]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    model.eval()
    outputs = model.generate(**inputs, max_new_tokens=12)
    return [pieces[0] for pieces in tokenizer.decode_pieces(outputs)]


before = answers_to(asked)
print(dict(zip(asked, before, strict=True)))

# %% [markdown]
# `Trainer` does the rest. Countries that are not among the pairs tell whether it learnt the form,
# or only the pairs.

# %%
from transformers import Trainer, TrainingArguments

arguments = TrainingArguments(
    "own-pairs-checkpoints",
    num_train_epochs=20,
    per_device_train_batch_size=5,
    learning_rate=5e-4,
    remove_unused_columns=False,
    save_strategy="no",
    logging_steps=4,
    report_to=[],
    seed=0,
)
trainer = Trainer(model, arguments, train_dataset=pairs, data_collator=collate)
trainer.train()
after = answers_to(asked)
print(dict(zip(asked, after, strict=True)))

# %% [markdown]
# The training loss, step by step:

# %%
import matplotlib.pyplot as plt

losses = [entry for entry in trainer.state.log_history if "loss" in entry]
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot([entry["step"] for entry in losses], [entry["loss"] for entry in losses])
axis.set(xlabel="step", ylabel="loss")
figure.tight_layout()

# %% [markdown]
# What is saved is a repository again; `complete_repository` adds a model card and a handler.

# %%
from glm_transformers.hub_repository.repository import complete_repository

model.save_pretrained("glm-capitals")
tokenizer.save_pretrained("glm-capitals")
complete_repository("glm-capitals", language="en")
print(sorted(file.name for file in Path("glm-capitals").iterdir()))
