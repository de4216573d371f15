"""Pretraining from texts to a Hub repository, on `Trainer` and `accelerate`."""

import json
import math
import os
from copy import copy
from pathlib import Path

import numpy as np
import torch
from datasets import IterableDataset
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerState, TrainingArguments, set_seed
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer import TRAINER_STATE_NAME

from ..configuration_glm import GLMConfig
from ..hub_repository.config import AUTO_MAP, PIPELINES, VOCABULARY_MULTIPLE
from ..hub_repository.repository import write_repository
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import GLMTokenizerFast
from .blank_infilling import NOT_A_TARGET, BlankInfillingCollator, NothingToMask
from .data import load_documents, pack_documents
from .options import Pretraining
from .recipe import MODES, Recipe, read_recipe
from .repository import find_repository, load_tokenizer

SHUFFLE_BUFFER = 10_000  # samples among which a stream is shuffled
EVALUATION_SEED = (
    1_000_003  # validation texts are masked alike at every evaluation, and never as in training
)


class GLMForBlankInfilling(GLMForConditionalGeneration):
    """GLM whose loss computes logits only where there is a target: most of a batch is context."""

    def forward(
        self, input_ids, attention_mask, position_ids, labels, num_items_in_batch=None, **kwargs
    ):
        """Inputs as the collator makes them.

        Returns:
            The mean over the targets, or their sum divided by `num_items_in_batch`, the targets of all batches of a step.
        """
        states = self.glm(
            input_ids, attention_mask, position_ids, use_cache=False, **kwargs
        ).last_hidden_state  # (B, T, H)
        targets = labels != NOT_A_TARGET  # (B, T)
        logits = F.linear(states[targets], self.glm.word_embeddings.weight)  # (targets, V)
        loss = F.cross_entropy(logits.float(), labels[targets], reduction="sum")
        return CausalLMOutput(
            loss / (targets.sum() if num_items_in_batch is None else num_items_in_batch)
        )


class Shuffled(Sampler):
    """Indices of a dataset that never ends: one shuffled pass after the other. Its state is how many were taken."""

    def __init__(self, size: int, total: int, seed: int, taken: int = 0):
        self.size, self.total, self.seed, self.taken = size, total, seed, taken

    def __iter__(self):
        position = self.taken
        while position < self.total:
            epoch, start = divmod(position, self.size)
            indices = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            indices = indices[start : start + self.total - position].tolist()
            yield from indices
            position += len(indices)

    def __len__(
        self,
    ):  # of the whole training, so that the Trainer counts a continued one as it counts any other
        return self.total


class BlankInfillingTrainer(Trainer):
    """`Trainer` with the original's schedule, a data order that can be continued exactly, and a loss for each mode."""

    def __init__(self, decay: str, decay_ratio: float, decay_steps: int, first_step: int, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = (
            True  # the loss is divided by the targets of all processes and batches of a step
        )
        self._loss_shifts_labels = False
        self.decay, self.decay_ratio, self.decay_steps, self.first_step = (
            decay,
            decay_ratio,
            decay_steps,
            first_step,
        )

    def get_train_dataloader(self) -> DataLoader:
        arguments, data, sampler = self.args, self.train_dataset, None
        batches = (
            arguments.gradient_accumulation_steps * arguments.world_size
        )  # in each step, of all processes
        samples = batches * arguments.per_device_train_batch_size
        self.data_collator.first_batch = self.first_step * arguments.gradient_accumulation_steps
        if isinstance(data, IterableDataset):
            data = (
                data.shuffle(seed=arguments.seed, buffer_size=SHUFFLE_BUFFER)
                .repeat(None)
                .skip(self.first_step * samples)
            )
        else:
            sampler = Shuffled(
                len(data), arguments.max_steps * samples, arguments.seed, self.first_step * samples
            )
        loader = DataLoader(
            data,
            batch_size=arguments.per_device_train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # a loader takes a number from its generator; the one of dropout must not change
        )
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Linear warmup, then linear or cosine decay to `decay_ratio` times the learning rate, which then stays."""
        warmup = math.ceil(self.args.warmup_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, self.decay_steps - warmup))
            left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
            return self.decay_ratio + (1 - self.decay_ratio) * left

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    @torch.no_grad()
    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss over all targets of the validation texts, for each mode that the recipe uses.

        Batches in which no text can be masked do not count; a mode in which none can be has no loss.
        """
        arguments, metrics = self.args, {}
        samples = eval_dataset if eval_dataset is not None else self.eval_dataset
        model, size = self.model_wrapped, arguments.per_device_eval_batch_size
        was_training = model.training
        model.eval()
        collator = copy(self.data_collator)
        collator.seed, batches = EVALUATION_SEED, -(-len(samples) // size)
        for mode in (mode for mode in MODES if getattr(collator.recipe, mode) > 0):
            total = torch.zeros(
                2, dtype=torch.float64, device=arguments.device
            )  # sum of losses, targets
            for first in range(
                0, batches, arguments.world_size
            ):  # every process makes as many calls
                number = first + arguments.process_index
                columns = samples[number % batches * size : (number % batches + 1) * size]
                rows = [{"input_ids": ids} for ids in columns["input_ids"]]
                counts = number < batches
                try:
                    batch = collator.collate(rows, number, mode)
                except NothingToMask:  # the other processes wait for this one's call all the same
                    batch, counts = collator.collate(rows, number, "document"), False
                batch = self._prepare_inputs(batch)
                loss = model(**batch, num_items_in_batch=1).loss
                if counts:
                    total += torch.stack(
                        [loss.double(), (batch["labels"] != NOT_A_TARGET).sum().double()]
                    )
            loss, targets = self.accelerator.reduce(total).tolist()
            if targets:
                metrics[f"{metric_key_prefix}_loss_{mode}"] = loss / targets
        model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            arguments, self.state, self.control, metrics
        )
        return metrics


def pretrain(options: Pretraining) -> Path:
    """Train and write the repository.

    Raises:
        ValueError: one sentence on what is wrong with the options; nothing is trained then.
    """
    output = Path(os.path.abspath(options.output))
    checkpoints = output.with_name(f"{output.name}-checkpoints")
    last = _last_checkpoint(checkpoints)
    _check(options, output, last)
    first_step = (
        TrainerState.load_from_json(f"{last}/{TRAINER_STATE_NAME}").global_step if last else 0
    )

    set_seed(options.seed)
    recipe = read_recipe(options.recipe)
    repository = find_repository(options.model) if options.model is not None else None
    tokenizer = load_tokenizer(options.tokenizer or repository)
    if repository is not None:
        model = GLMForBlankInfilling.from_pretrained(repository, dtype=torch.float32)
    else:
        model = GLMForBlankInfilling(_new_config(options.config, tokenizer))
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        max_grad_norm=options.max_grad_norm,
        warmup_steps=math.ceil(options.warmup * options.steps),
        use_cpu=not torch.accelerator.is_available(),  # or processes on a CPU would not find each other
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        eval_strategy="steps" if options.validation else "no",
        eval_steps=options.evaluate_every,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_steps=options.log_every,
        report_to=["tensorboard"],
        dataloader_num_workers=options.workers,
        average_tokens_across_devices=True,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the sampler begins where the run was killed; there is nothing to skip
        accelerator_config={
            "dispatch_batches": False,
            "split_batches": False,
            "even_batches": False,
        },
        seed=options.seed,
    )
    length = options.length or model.config.max_sequence_length
    collator = BlankInfillingCollator(
        tokenizer,
        recipe,
        length,
        options.seed,
        rank=arguments.process_index,
        world_size=arguments.world_size,
    )
    _check_model(model.config, recipe, collator, length)
    wanted = options.steps * options.batch_size * options.accumulation * arguments.world_size
    with arguments.main_process_first():  # the others then find its cache
        pack = dict(
            tokenizer=tokenizer, length=length, one_document=options.one_document, seed=options.seed
        )
        data = pack_documents(
            load_documents(options.data, options.streaming), wanted=wanted, **pack
        )
        validation = (
            pack_documents(load_documents(options.validation), **pack)
            if options.validation
            else None
        )
    if options.streaming and next(iter(data), None) is None:  # repeating it would never end
        raise ValueError("The documents hold no text; check the data.")
    trainer = BlankInfillingTrainer(
        decay=options.decay,
        decay_ratio=options.decay_ratio,
        decay_steps=options.decay_steps or options.steps,
        first_step=first_step,
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=validation,
        data_collator=collator,
    )
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        _write(output, trainer.accelerator.unwrap_model(trainer.model), tokenizer)
    trainer.accelerator.wait_for_everyone()
    return output


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete one: the `Trainer` writes its state last, so a run that was killed before left none."""
    steps = [
        int(file.parent.name.partition("-")[2])
        for file in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    ]
    return str(checkpoints / f"checkpoint-{max(steps)}") if steps else None


def _check(options: Pretraining, output: Path, last: str | None):
    if (options.model is None) == (options.config is None) or (
        options.config and options.tokenizer is None
    ):
        raise ValueError(
            "Pass --model to continue a repository, or --config and --tokenizer to train from scratch."
        )
    if options.streaming and options.workers > 1:
        raise ValueError(
            "Streamed data keeps its order with one worker at most; pass --workers 0 or 1."
        )
    if os.path.lexists(output):
        raise ValueError(f"{output} exists already; choose another place.")
    if options.resume and last is None:
        raise ValueError(
            f"{output}-checkpoints holds no checkpoint to continue from; leave --resume out."
        )
    if not options.resume and last is not None:
        raise ValueError(
            f"{last} is of an unfinished run; pass --resume to continue it, or choose another place."
        )


def _check_model(config: GLMConfig, recipe: Recipe, collator: BlankInfillingCollator, length: int):
    if len(collator.ends_sentence) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(collator.ends_sentence)} ids and the vocabulary {config.vocab_size} rows; raise "
            "vocab_size, or use the model's own tokenizer."
        )
    if recipe.block_mask_prob and collator.block_mask_id >= config.vocab_size:
        raise ValueError(
            f"[dBLOCK] needs the id {collator.block_mask_id} and the vocabulary has {config.vocab_size} rows; raise "
            "vocab_size, or use a recipe without block_mask_prob."
        )
    if length > config.max_sequence_length:
        raise ValueError(
            f"length is {length} and the model's longest position {config.max_sequence_length}; shorten it."
        )
    if not config.block_position_encoding:
        raise ValueError("The model has no block positions; blank infilling is trained with them.")


def _new_config(file: str, tokenizer: GLMTokenizerFast) -> GLMConfig:
    """The configuration of a new model: its shape from the file, special ids from the tokenizer."""
    try:
        values = dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is no JSON file with fields of GLMConfig: {error}.") from error
    unknown = set(values) - set(GLMConfig().to_dict()) - set(GLMConfig.attribute_map)
    if unknown:
        raise ValueError(
            f"{file} has the unknown fields {', '.join(sorted(unknown))}; the fields are those of GLMConfig."
        )
    rows = max(tokenizer.get_vocab().values()) + 2  # [dBLOCK] has the first free id
    return GLMConfig(
        **{
            "vocab_size": -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
            "sop_token_id": tokenizer.sop_token_id,
            "eop_token_id": tokenizer.eop_token_id,
            "mask_token_ids": tokenizer.mask_token_ids,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **values,
        }
    )


def _write(output: Path, model: GLMForBlankInfilling, tokenizer: GLMTokenizerFast):
    """The complete repository, as conversion writes it."""
    shared = {
        "architectures": ["GLMForConditionalGeneration"],
        "auto_map": AUTO_MAP,
        "custom_pipelines": PIPELINES,
    }
    of_this_run = {
        "use_cache": True,
        "_name_or_path": "",
    }  # the `Trainer` turned the cache off; the path is of this machine
    config = GLMConfig(**{**model.config.to_dict(), **of_this_run, **shared})
    write_repository(
        output,
        config,
        model.state_dict(),
        tokenizer,
    )
