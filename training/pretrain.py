"""Pretraining from texts to a Hub repository, on `Trainer` and `accelerate`."""

import json
import math
from copy import copy
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import TrainingArguments, set_seed

from ..configuration_glm import GLMConfig
from ..hub_repository.config import VOCABULARY_MULTIPLE
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import IGNORED, GLMTokenizerFast
from .blank_infilling import BlankInfillingCollator, NothingToMask
from .data import NO_TEXT, load_documents, pack_documents
from .options import Pretraining
from .recipe import MODES, Recipe, read_recipe
from .repository import find_repository, load_tokenizer, write_network
from .run import RepeatableTrainer, Run, common_arguments

SHUFFLE_BUFFER = 10_000  # samples among which a stream is shuffled
# Validation texts are masked alike at every evaluation, and never as in training.
EVALUATION_SEED = 1_000_003


class BlankInfillingTrainer(RepeatableTrainer):
    """The trainer of every run, with streams of texts and a loss for each mode."""

    data_collator: BlankInfillingCollator

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # The loss is divided by the targets of all processes and batches of a step.
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> DataLoader:
        self.data_collator.first_batch = self.first_step * self.args.gradient_accumulation_steps
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        stream = self.train_dataset.shuffle(seed=self.args.seed, buffer_size=SHUFFLE_BUFFER)
        taken = self.first_step * self.samples_of_a_step
        return self.make_loader(stream.repeat(None).skip(taken), order=None)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset=None,
        ignore_keys=None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean loss over all targets of the validation texts, for each mode of the recipe.

        Batches in which no text can be masked do not count; a mode without others has no loss.
        """
        samples = eval_dataset if eval_dataset is not None else self.eval_dataset
        metrics = {}
        was_training = self.model_wrapped.training
        self.model_wrapped.eval()
        for mode in MODES:
            if getattr(self.data_collator.recipe, mode) == 0:
                continue
            loss, targets = self._sum_losses(samples, mode)
            if targets:
                metrics[f"{metric_key_prefix}_loss_{mode}"] = loss / targets
        self.model_wrapped.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,
            metrics,
        )
        return metrics

    def _sum_losses(self, samples, mode: str) -> tuple[float, float]:
        """Sum of the losses, and number of the targets, of all samples in one mode."""
        arguments, size = self.args, self.args.per_device_eval_batch_size
        collator = copy(self.data_collator)
        collator.seed = EVALUATION_SEED
        batches = math.ceil(len(samples) / size)
        total = torch.zeros(2, dtype=torch.float64, device=arguments.device)
        # Every process makes as many calls, the last ones with a batch that does not count.
        for first in range(0, batches, arguments.world_size):
            number = first + arguments.process_index
            counts = number < batches
            start = number % batches * size
            texts = [{"input_ids": ids} for ids in samples[start : start + size]["input_ids"]]
            try:
                batch = collator.collate(texts, number, mode)
            except NothingToMask:  # the other processes wait for this one's call all the same
                batch, counts = collator.collate(texts, number, "document"), False
            batch = self._prepare_inputs(batch)
            loss = self.model_wrapped(**batch, num_items_in_batch=1, skip_logits=True).loss
            if counts:
                targets = (batch["labels"] != IGNORED).sum()
                total += torch.stack([loss.double(), targets.double()])
        loss, targets = self.accelerator.reduce(total).tolist()
        return loss, targets


def pretrain(options: Pretraining) -> Path:
    """Train and write the repository.

    Raises:
        ValueError: one sentence on what is wrong with the options; nothing is trained then.
    """
    run = Run.of(options.output)
    _check(options)
    run.check(options.resume)
    recipe = read_recipe(options.recipe)
    arguments = _training_arguments(options, run)
    begun = {**asdict(options), "recipe": asdict(recipe), "processes": arguments.world_size}
    run.check_same(begun)

    set_seed(options.seed)
    tokenizer, model = _load(options)
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
    data, validation = _pack(options, tokenizer, length, arguments)
    trainer = BlankInfillingTrainer(
        decay=options.decay,
        decay_ratio=options.decay_ratio,
        decay_steps=options.decay_steps or options.steps,
        first_step=run.first_step,
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=validation,
        data_collator=collator,
    )
    if trainer.is_world_process_zero():
        run.record(begun)
    trainer.train(resume_from_checkpoint=run.last)
    weights = trainer.gather_weights()
    if trainer.is_world_process_zero():
        network = trainer.accelerator.unwrap_model(trainer.model)
        architecture = GLMForConditionalGeneration.__name__
        write_network(run.output, network, weights, architecture, tokenizer)
    trainer.accelerator.wait_for_everyone()
    return run.output


# --- Before a run -------------------------------------------------------------------------------


def _check(options: Pretraining):
    from_scratch = options.config is not None
    if (options.model is not None) == from_scratch or (from_scratch and not options.tokenizer):
        raise ValueError(
            "Pass --model to continue a repository, or --config and --tokenizer to train from "
            "scratch."
        )
    if options.streaming and options.workers > 1:
        raise ValueError(
            "Streamed data keeps its order with one worker at most; pass --workers 0 or 1."
        )


def _training_arguments(options: Pretraining, run: Run) -> TrainingArguments:
    return TrainingArguments(
        **common_arguments(options, run, options.steps),
        fp16=options.precision == "fp16",
        accelerator_config={
            "dispatch_batches": False,
            "split_batches": False,
            "even_batches": False,
        },
    )


def _load(options: Pretraining) -> tuple[GLMTokenizerFast, GLMForConditionalGeneration]:
    """Tokenizer and network, in float32 whatever the repository holds."""
    if options.model is not None:
        repository = find_repository(options.model)
        tokenizer = load_tokenizer(options.tokenizer or repository)
        model = GLMForConditionalGeneration.from_pretrained(repository, dtype=torch.float32)
    else:
        assert options.tokenizer is not None and options.config is not None  # see _check
        tokenizer = load_tokenizer(options.tokenizer)
        model = GLMForConditionalGeneration(_new_config(options.config, tokenizer))
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return tokenizer, model


def _pack(
    options: Pretraining,
    tokenizer: GLMTokenizerFast,
    length: int,
    arguments: TrainingArguments,
):
    """Samples for training, and for validation if there is any."""

    def pack(documents: Dataset | IterableDataset, wanted: int | None):
        return pack_documents(
            documents,
            tokenizer,
            length,
            wanted,
            options.one_document,
            options.seed,
        )

    wanted = options.steps * options.batch_size * options.accumulation * arguments.world_size
    with arguments.main_process_first():  # the others then find its cache
        data = pack(load_documents(options.data, options.streaming), wanted)
        validation = None
        if options.validation is not None:
            validation = pack(load_documents(options.validation), wanted=None)
    if options.streaming and next(iter(data), None) is None:  # repeating it would never end
        raise ValueError(NO_TEXT)
    return data, validation


def _check_model(config: GLMConfig, recipe: Recipe, collator: BlankInfillingCollator, length: int):
    ids, rows = len(collator.ends_sentence), config.vocab_size
    if ids > rows:
        raise ValueError(
            f"The tokenizer has {ids} ids and the vocabulary {rows} rows; raise vocab_size, or use "
            "the model's own tokenizer."
        )
    if recipe.block_mask_prob and collator.block_mask_id >= rows:
        raise ValueError(
            f"[dBLOCK] needs the id {collator.block_mask_id} and the vocabulary has {rows} rows; "
            "raise vocab_size, or use a recipe without block_mask_prob."
        )
    if length > config.max_sequence_length:
        raise ValueError(
            f"length is {length} and the model's longest position {config.max_sequence_length}; "
            "shorten it."
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
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{file} has the unknown fields {names}; the fields are GLMConfig's.")
    rows = max(tokenizer.get_vocab().values()) + 2  # [dBLOCK] has the first free id
    from_the_tokenizer = {
        "vocab_size": math.ceil(rows / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        "sop_token_id": tokenizer.sop_token_id,
        "eop_token_id": tokenizer.eop_token_id,
        "mask_token_ids": tokenizer.mask_token_ids,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return GLMConfig(**{**from_the_tokenizer, **values})
