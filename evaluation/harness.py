"""GLM in EleutherAI's lm-evaluation-harness, as its model `glm`.

    import lm_eval
    import glm_transformers.evaluation.harness
    lm_eval.simple_evaluate("glm", "pretrained=my-glm-2b", tasks=["lambada_openai"])

or `glm evaluate my-glm-2b --tasks lambada_openai`. The harness speaks of a context and of a text
that continues it. GLM writes into blanks, so a context gets one at its end:

* `[gMASK]`, behind which pretraining has no end of text, or `[MASK]`, if the model knows no other,
  and the end of text (FACTS section 5). A context that has masks of its own stays as it is: what is
  asked for answers the last of them, as in the original's multiple choice.
* White space at the end of a context belongs to what follows it: a mask swallows the space on its
  left, and the words of the GPT-2 and RoBERTa families begin with theirs. The continuation is
  encoded by itself, as the answers in pretraining are, and has no end token.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm.auto import tqdm

from ..training.processes import are_on_cpu
from .language_modeling import WIKITEXT_STRIDE, windows
from .model import check_length, load
from .rows import Row, score_as_they_come, score_rows
from .scoring import encode

# Tokens that are generated where a task does not say it; the harness's own default.
GENERATED = 256


@register_model("glm")
class GLMHarness(LM):
    """
    Args:
        pretrained: a converted repository, a folder or a name on the Hub.
        batch_size: rows of a forward pass.
        max_length: tokens of a context with its continuation; the model's longest by default. Of a
            longer context the left is dropped.
        mask: the blank of a context that has none; by default `[gMASK]`, if the model knows it.
        dtype, device, quantize: of `load`. Under `accelerate launch` each process has a device of
            its own and answers its share of the requests.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        max_length: int | None = None,
        mask: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        quantize: str | None = None,
    ):
        super().__init__()
        accelerator = Accelerator(cpu=are_on_cpu())
        self._rank = accelerator.process_index
        self._world_size = accelerator.num_processes
        self._accelerator = accelerator
        several = accelerator.num_processes > 1
        self.model, self.tokenizer = load(
            pretrained,
            dtype,
            accelerator.device if several else device,
            quantize,
        )
        self._device = self.model.device
        self.repository = pretrained
        self.batch_size = whole_number(batch_size)
        check_length(max_length, self.model.config)
        self.max_length = max_length or self.model.config.max_sequence_length
        self.mask = mask or self.tokenizer.continuation_mask
        if self.mask not in self.tokenizer.masks:
            raise ValueError(
                f"mask is {self.mask}; this model knows {', '.join(self.tokenizer.masks)}."
            )

    # --- Scores -----------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether the model would write it."""
        asked: list[Any] = [request.args for request in requests]
        rows = [self.continuation_row(*pair) for pair in asked]
        answers: dict[int, tuple[float, bool]] = {}
        for number, score in score_as_they_come(
            self.model,
            self.tokenizer,
            rows,
            self.batch_size,
            "Log-likelihoods",
        ):
            answers[number] = (score.log_prob, score.is_greedy)
            self.cache_hook.add_partial("loglikelihood", asked[number], answers[number])
        return [answers[number] for number in range(len(rows))]

    def continuation_row(self, context: str, continuation: str) -> Row:
        """The continuation in the blank of its context.

        Raises:
            ValueError: for a continuation without a token, or one that leaves its context no room.
        """
        text, space = self.with_blank(context)
        answer = encode(self.tokenizer, space + continuation)
        if not answer:
            raise ValueError(f"The continuation {continuation!r} has no token; it has no score.")
        ids, blank = self.encode_context(text, self.max_length - len(answer))
        return Row(ids, blank, answer)

    def with_blank(self, context: str) -> tuple[str, str]:
        """A context with a mask, and the white space that belongs to what follows."""
        if any(mask in context for mask in self.tokenizer.masks):
            return context, ""
        text = context.rstrip()
        return text + self.mask, context[len(text) :]

    def encode_context(self, text: str, room: int) -> tuple[list[int], int]:
        """The ids of a text with a mask, and the column of its last mask.

        A text that is too long loses its left, then what is behind the mask, never the mask.
        """
        ids = self.tokenizer(text, verbose=False).input_ids
        self.tokenizer.check_no_commands(ids, "A context")
        masks = self.tokenizer.mask_token_ids
        blank = max(column for column, id in enumerate(ids) if id in masks)
        if room < 2:  # [CLS] and the mask
            raise ValueError(
                f"What follows a context leaves it {room} tokens of {self.max_length}; allow more, "
                "or ask for less."
            )
        surplus = max(len(ids) - room, 0)
        dropped = min(surplus, blank - 1)  # [CLS] stays
        ids = ids[:1] + ids[1 + dropped :]
        return ids[:room], blank - dropped

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of each whole text, by the windows of the original's perplexity.

        The original leaves the first token out. The harness counts all, so it is scored too, in a
        row of its own behind an empty context.
        """
        texts = [request.args[0] for request in requests]
        rows_of = [self.rolling_rows(text) for text in texts]
        scores = score_rows(
            self.model,
            self.tokenizer,
            [row for rows in rows_of for row in rows],
            self.batch_size,
            "Rolling log-likelihoods",
        )
        answers, start = [], 0
        for text, rows in zip(texts, rows_of, strict=True):
            of_text = scores[start : start + len(rows)]
            start += len(rows)
            answers.append(sum(score.log_prob for score in of_text))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def rolling_rows(self, text: str) -> list[Row]:
        tokens = encode(self.tokenizer, text)
        if not tokens:
            return []
        stride = min(WIKITEXT_STRIDE, self.max_length // 2)
        ids, blank = self.encode_context(self.mask, self.max_length)
        return [
            Row(ids, blank, tokens[:1]),
            *windows(self.tokenizer, tokens, self.max_length, stride),
        ]

    # --- Generation -------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes into the blank of each context, up to the first stop string."""
        asked: list[Any] = [request.args for request in requests]
        groups = defaultdict(list)  # requests of the same settings can be generated together
        for number, (_, settings) in enumerate(asked):
            groups[repr(settings)].append(number)
        answers: dict[int, str] = {}
        progress = tqdm(total=len(asked), desc="Generating")
        for numbers in groups.values():
            numbers.sort(key=lambda number: -len(asked[number][0]))
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                written = self.generate(
                    [asked[number][0] for number in batch],
                    asked[batch[0]][1],
                )
                for number, text in zip(batch, written, strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", asked[number], text)
                progress.update(len(batch))
        progress.close()
        return [answers[number] for number in range(len(asked))]

    @torch.inference_mode()
    def generate(self, contexts: Sequence[str], settings: dict) -> list[str]:
        """The answers of contexts (B) with the same settings.

        Args:
            settings: `until`, `max_gen_toks`, and what the library's `generate` takes.
        """
        options = dict(normalize_gen_kwargs(settings, min(GENERATED, self.max_length // 2)))
        stops = [stop for stop in options.pop("until") if stop]
        longest = options.pop("max_gen_toks")
        if not options["do_sample"]:
            options.pop("temperature", None)
        if stops:
            options |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        rows = [self.prompt(context, self.max_length - longest) for context in contexts]
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        output = self.model.generate(
            **inputs,
            max_new_tokens=longest,
            max_piece_length=longest,
            **options,
        )
        pieces = output[:, inputs.input_ids.shape[1] + 1 :]  # behind the start
        return [self.written(piece, stops) for piece in pieces.tolist()]

    def prompt(self, context: str, room: int) -> list[int]:
        """The ids of a context with one blank, in so many tokens."""
        text, _ = self.with_blank(context)
        ids, _ = self.encode_context(text, room)
        if sum(id in self.tokenizer.mask_token_ids for id in ids) > 1:
            raise ValueError(
                f"A context has several masks, of which one can be answered: {context[-80:]!r}"
            )
        return ids

    def written(self, piece: list[int], stops: list[str]) -> str:
        """The text of a piece up to its end, or to the first stop string."""
        ends = self.model.config.end_token_ids
        end = next((column for column, id in enumerate(piece) if id in ends), len(piece))
        text = cast(str, self.tokenizer.decode(piece[:end]))
        return postprocess_generated_text(text, stops, None)

    # --- Several processes ------------------------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list | None:
        if self.world_size == 1:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    # --- For the record ---------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self.repository.replace("/", "__")

    def get_model_info(self) -> dict:
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "mask": self.mask,
            "max_length": self.max_length,
        }


def whole_number(batch_size: int | str) -> int:
    """Command lines give texts, and may ask for a size that is found out."""
    if not str(batch_size).isdigit() or int(batch_size) == 0:
        raise ValueError(f"batch_size is {batch_size}; give a number of rows.")
    return int(batch_size)
