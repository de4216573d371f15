"""The `text2text-generation` pipeline of GLM: text with blanks in, filled blanks out."""

import copy
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForSeq2SeqLM, Pipeline, pipelines
from transformers.pipelines import PIPELINE_REGISTRY

from .answers_glm import LEAST_BEAMS, BestAnswer, BestAnswers, BestAnswersMixin

if TYPE_CHECKING:  # never run: 4.57 loads what is named here, not what that needs
    from .blanks_glm import BlankLayout  # noqa: F401
    from .steering_glm import Steering  # noqa: F401

TASK = "text2text-generation"
# What people write for a mask, in any case: those of GLM, BERT, RoBERTa and T5, also with numbers
# and spaces in them.
MASK_OF_OTHERS = re.compile(
    r"\[\s*\w?MASK[ _-]?\d*\s*\]|<mask[ _-]?\d*>|<extra_id_\d+>",
    re.IGNORECASE,
)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # which Python makes of bytes that are no UTF-8
# What is one for every blank of a text, or a list with one for each.
STEERING = ("min_piece_length", "max_piece_length", "allowed_answers")
# What else the search for alternatives heeds.
OF_ALTERNATIVES = ("num_beams", "max_new_tokens", "bad_words_ids", "stopping_criteria")
# What `generate` leaves out, with a warning, where nothing is drawn.
OF_DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")

# --- Where versions of Transformers differ --------------------------------------------------------
# 5 removed the task: it refuses the name before it looks for a class.
REMOVED_TASKS = getattr(pipelines, "REMOVED_TASKS", {})


def complete_generate_kwargs(pipeline: Pipeline, generate_kwargs: dict) -> dict:
    """What `generate` is called with: the caller's options, then those of the pipeline itself."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):  # 5
        return pipeline._prepare_generate_kwargs(generate_kwargs)
    config = pipeline.generation_config  # type: ignore[attr-defined]  # 5 has another name for it
    return {"generation_config": config, **generate_kwargs}


def options_when_made(pipeline: Pipeline) -> dict:
    """The options of `generate` that the pipeline was made with; a call's configuration replaces
    them."""
    if hasattr(pipeline, "_generate_kwargs"):  # 5
        return pipeline._generate_kwargs
    model: Any = pipeline.model
    config = pipeline.generation_config  # type: ignore[attr-defined]  # the model's, with them
    return {
        name: value
        for name, value in config.to_dict().items()
        if value != getattr(model.generation_config, name, None)
    }


class GLMText2TextGenerationPipeline(Pipeline):
    """Fills the blanks of a text.

    Returns, for each text, a dictionary: `blanks`, the pieces in the order of the masks;
    `generated_text`, the pieces joined by a space; `filled_text`, the text with its blanks filled.
    A string gives a list of one dictionary for each returned sequence, a list of strings gives a
    list of these (flat, if there is one for each).

    A text without a mask is continued: `[gMASK]` is appended, or `[MASK]` for a model that was not
    trained with it, as the original does. An empty text in a list, a generator or a dataset has no
    blanks, and its texts are empty; alone it is an error. `[CLS]`, `[SEP]` and their like in a text
    are read as tokens, as in the original.

    A repository gives it by the name of the task, and so does a model in memory once its code is
    imported. A model of peft is passed to the class itself, as any model can be.

    Args, of the pipeline or of a call; others go to `generate`:
        truncation: cut texts that are too long for the model; the left of a text that is continued.
        return_tensors: add `generated_token_ids`, the ids behind the context.
        return_text: False leaves the texts out.
        clean_up_tokenization_spaces: of `tokenizer.decode`.
        assistant_model: of `generate`; also a name, when it is given to the pipeline.
        min_piece_length, max_piece_length: the fewest and the most tokens of an answer, one number
            for every blank or a list with one for each blank.
        allowed_answers: a list with an entry for each blank: a list of the answers that it may
            have, or None.
        bad_words: words that must not occur in answers.
        alternatives: so many answers, at most, for each blank. The result has `alternatives`: for
            each blank a list of {"answer", "probability"}, best first, where a probability is that
            of the whole answer with its end, behind the best answers to earlier blanks; these are
            what the blanks are filled with. It heeds the options above, max_new_tokens, which
            is for one answer then, and num_beams.

    Examples:
        >>> fill = pipeline("text2text-generation", model=repository, trust_remote_code=True)
        >>> fill = GLMText2TextGenerationPipeline(model=model, tokenizer=tokenizer)
        >>> fill("Ng is an adjunct professor at [MASK].")[0]["filled_text"]
    """

    model: Any  # a GLM, or one with an adapter around it
    tokenizer: Any  # the library's types do not know that there is one
    # The library's types have only None here, for what a class leaves open.
    _pipeline_calls_generate: Any = True
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False

    def _sanitize_parameters(
        self,
        truncation=None,
        return_tensors=None,
        return_text=None,
        clean_up_tokenization_spaces=None,
        min_piece_length=None,
        max_piece_length=None,
        allowed_answers=None,
        bad_words=None,
        alternatives=None,
        **generate_kwargs,
    ):
        for name, remedy in {
            "stop_sequence": "pass stop_strings and tokenizer, or eos_token_id",
            "return_type": "pass return_tensors or return_text",
        }.items():
            if generate_kwargs.pop(name, None) is not None:
                raise ValueError(f"{name} is not supported; {remedy}.")
        for name in ("assistant_model", "assistant_tokenizer"):
            if getattr(self, name, None) is not None:
                generate_kwargs.setdefault(name, getattr(self, name))
                if name == "assistant_tokenizer":
                    generate_kwargs.setdefault("tokenizer", self.tokenizer)
        postprocess = {
            "return_tensors": return_tensors,
            "return_text": return_text,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "alternatives": alternatives,
        }
        if return_text is False and not return_tensors:
            raise ValueError("return_text=False leaves nothing; pass return_tensors=True with it.")
        if alternatives is not None:
            if type(alternatives) is not int or alternatives < 1:
                raise ValueError(f"alternatives is {alternatives!r}; pass an integer from 1 on.")
            generate_kwargs["alternatives"] = alternatives
        if bad_words is not None:
            more = generate_kwargs.get("bad_words_ids") or []
            generate_kwargs["bad_words_ids"] = more + self.tokenizer.encode_bad_words(bad_words)
        preprocess = {
            "truncation": truncation,
            "min_piece_length": min_piece_length,
            "max_piece_length": max_piece_length,
            "allowed_answers": allowed_answers,
        }
        preprocess = {name: value for name, value in preprocess.items() if value is not None}
        postprocess = {name: value for name, value in postprocess.items() if value is not None}
        return preprocess, generate_kwargs, postprocess

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, str) and not inputs.strip():
            raise ValueError(f"A prompt must be a text with something in it, not {inputs!r}.")
        self._check_draws({**self._forward_params, **kwargs})
        if isinstance(inputs, list):
            given = {**self._preprocess_params, **kwargs}
            steering = {name: given[name] for name in STEERING if name in given}
            for text in inputs:  # before any work is done
                self._check_text(text, **steering)
        results = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(
            isinstance(result, list) and len(result) == 1 for result in results
        ):
            return [result[0] for result in results]
        return results

    def _check_draws(self, options: dict):
        """Raise a ValueError for options of draws where the likeliest answers are asked for."""
        made = {} if "generation_config" in options else options_when_made(self)
        given = {**made, **options}
        configs = (given.get("generation_config"), self.model.generation_config)
        said = [given.get("do_sample"), *(getattr(config, "do_sample", None) for config in configs)]
        is_drawn = next((value for value in said if value is not None), False)
        if not is_drawn:
            refuse_draws(given, OF_DRAWS, "pass do_sample=True")

    def check_readable(self, text: str, **steering):
        """Raise a ValueError, a sentence for the person who wrote it, if `text` cannot be filled.

        More than a call refuses: what looks like a mask and is none of this model's.

        Args:
            steering: options of a call that may have an entry for each blank.
        """
        if not text.strip():
            raise ValueError("There is no text; write one with a [MASK] where words are missing.")
        if HALF_CHARACTER.search(text):
            raise ValueError("The text holds bytes that are no UTF-8; save it as UTF-8.")
        self._check_text(text, **steering)
        masks = self.tokenizer.masks
        for wrong in MASK_OF_OTHERS.findall(text):
            if wrong not in masks:
                raise ValueError(f"This model has no {wrong}; its masks are {', '.join(masks)}.")
        tokens = len(self.tokenizer(self.prompt(text), verbose=False).input_ids)
        longest = self.model.config.max_sequence_length
        if tokens > longest:
            raise ValueError(
                f"The text has {tokens} tokens and this model reads {longest}; shorten it."
            )

    def _check_text(self, text, **steering):
        if not isinstance(text, str):
            raise ValueError(f"A prompt must be a text, not {text!r}.")
        for token in (self.tokenizer.sop_token, self.tokenizer.eop_token, self.tokenizer.eos_token):
            if token in text:
                raise ValueError(
                    f"A prompt holds {token}, which GLM takes for a command and not for text; "
                    "leave it out."
                )
        for name, value in steering.items():
            self._check_for_each_blank(name, value, text)

    def _check_for_each_blank(self, name: str, value, text: str):
        """Raise a ValueError for a list without one entry for each blank of a text."""
        if value is None or (name != "allowed_answers" and isinstance(value, int)):
            return
        blanks = self.count_blanks(text)
        if not isinstance(value, (list, tuple)) or (blanks and len(value) != blanks):
            given = f"{len(value)} entries" if isinstance(value, (list, tuple)) else repr(value)
            raise ValueError(
                f"{name} has {given}, but there are {blanks} blanks in {text[:60]!r}; pass a list "
                "with one entry for each blank."
            )

    def count_blanks(self, text: str) -> int:
        """The blanks of a text, of which one that is continued has one, and an empty one none."""
        masks = re.findall("|".join(map(re.escape, self.tokenizer.masks)), text)
        return len(masks) or bool(text.strip())

    def preprocess(self, text: str, truncation=None, **steering) -> dict:
        self._check_text(text, **steering)
        tokenizer = self.tokenizer
        prompt = self.prompt(text)
        if prompt != text:
            tokenizer = copy.copy(tokenizer)
            tokenizer.truncation_side = "left"  # what stands at the mask matters most
        encoded = tokenizer(prompt, truncation=truncation, return_tensors="pt")
        is_text = bool(text.strip())
        return {
            "text": prompt if is_text else "",
            "steering": self._steer(encoded, self.count_blanks(prompt), is_text, **steering),
            **encoded,
        }

    def _steer(self, encoded, blanks: int, is_text: bool, **steering) -> dict[str, list]:
        """The options of `generate` that have an entry for each blank, of one text."""
        rows = {
            name: list(value) if isinstance(value, (list, tuple)) else [value] * blanks
            for name, value in steering.items()
        }
        if not is_text:  # it is filled like the others, and nothing of it is shown
            return {name: [None] * blanks for name in rows}
        if "allowed_answers" in rows:
            (rows["allowed_answers"],) = self.tokenizer.encode_allowed_answers(
                encoded, [rows["allowed_answers"]]
            )
        return rows

    def prompt(self, text: str) -> str:
        """The text; one without a mask ends with the one that continues it."""
        if any(mask in text for mask in self.tokenizer.masks):
            return text
        return f"{text}{'' if text[-1:].isspace() else ' '}{self.tokenizer.continuation_mask}"

    def _forward(self, model_inputs: dict, alternatives=None, **generate_kwargs) -> dict:
        text = model_inputs.pop("text")
        steering = model_inputs.pop("steering")
        rows = [steering] if isinstance(text, str) else steering  # of one text, or of a batch
        tables = {name: [row[name] for row in rows] for name in rows[0]}
        batch, length = model_inputs["input_ids"].shape
        outputs = {"text": text, "length": torch.full((batch,), length)}
        if alternatives is not None:
            best = self._best_answers(model_inputs, alternatives, tables, generate_kwargs)
            answers = best.answers[0] if isinstance(text, str) else best.answers
            return {**outputs, "sequences": best.sequences[:, None], "answers": answers}
        output = self.model.generate(
            **model_inputs,
            **tables,
            **complete_generate_kwargs(self, generate_kwargs),
        )
        # With return_dict_in_generate the sequences are one of several fields.
        sequences = getattr(output, "sequences", output)  # (B * returned, N)
        sequences = sequences.view(batch, -1, sequences.shape[-1])  # (B, returned, N)
        return {**outputs, "sequences": sequences}

    def _best_answers(
        self,
        model_inputs: dict,
        alternatives: int,
        tables: dict[str, Any],
        generate_kwargs: dict,
    ) -> BestAnswers:
        for name, value in generate_kwargs.items():
            if name not in OF_ALTERNATIVES and value not in (None, False):
                raise ValueError(
                    f"alternatives are what a search finds best, without {name}; leave one of them "
                    "out."
                )
        given = complete_generate_kwargs(self, generate_kwargs)
        config = given.get("generation_config")
        # Different ids can be the same text, so more are looked for.
        k = max(2 * alternatives, LEAST_BEAMS)
        return BestAnswersMixin.best_answers(
            self.model,
            **model_inputs,
            **tables,
            k=k,
            num_beams=max(k, given.get("num_beams") or 0),
            max_new_tokens=given.get("max_new_tokens", getattr(config, "max_new_tokens", None)),
            bad_words_ids=given.get("bad_words_ids"),
            stopping_criteria=given.get("stopping_criteria"),
        )

    def postprocess(
        self,
        model_outputs: dict,
        return_tensors=False,
        return_text=True,
        clean_up_tokenization_spaces=None,
        alternatives=None,
    ) -> list[dict]:
        text, (sequences,) = model_outputs["text"], model_outputs["sequences"]  # (returned, N)
        options = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        results = []
        answers_of = self.tokenizer.decode_pieces(sequences, **options)
        for row, pieces in zip(sequences, answers_of, strict=True):
            pieces = pieces if text else []
            result: dict[str, Any] = {}
            if return_text:
                result["generated_text"] = " ".join(pieces)
                result["blanks"] = pieces
                result["filled_text"] = self.tokenizer.fill(text, pieces)
            if alternatives is not None:
                answers = model_outputs["answers"] if text else []
                result["alternatives"] = [
                    self._distinct(of_blank, alternatives, options) for of_blank in answers
                ]
            if return_tensors:
                result["generated_token_ids"] = row[int(model_outputs["length"]) :]
            results.append(result)
        return results

    def _distinct(self, answers: list[BestAnswer], most: int, options: dict) -> list[dict]:
        """The texts of answers, best first, each once, with their probabilities."""
        probabilities: dict[str, float] = {}
        for answer in answers:
            text = cast(str, self.tokenizer.decode(answer.ids, **options)).strip()
            probabilities.setdefault(text, math.exp(answer.log_prob))
        return [
            {"answer": text, "probability": probability}
            for text, probability in list(probabilities.items())[:most]
        ]


def refuse_draws(options: Mapping[str, Any], names: Iterable[str], remedy: str):
    """Raise a ValueError if an option of these names is given, which changes nothing without draws.

    Args:
        remedy: by what the answers would be drawn.
    """
    given = next((name for name in names if options.get(name) is not None), None)
    if given is not None:
        raise ValueError(
            f"{given} is for answers that are drawn; {remedy} with it, or leave it out."
        )


# --- The name of the task, for models in memory ---------------------------------------------------
# `pipeline` finds the class of a repository in its configuration, that of a model in memory in a
# table of the library. There stands on 4.57 a class that shows GLM's prompt as its answer, on 5
# nothing, and an error before it. Other models get from it what they got before.

OTHERS = PIPELINE_REGISTRY.supported_tasks.get(TASK, {"type": "text", "default": {}})
REMOVED = REMOVED_TASKS.pop(TASK, None)


class PipelineByModel(GLMText2TextGenerationPipeline):
    """Makes a pipeline of the model's kind; it is none itself."""

    def __new__(cls, model, **kwargs):
        if hasattr(model.config, "sop_token_id"):
            return GLMText2TextGenerationPipeline(model=model, **kwargs)
        if "impl" not in OTHERS:
            raise KeyError(f"The task {TASK} has been removed from transformers. {REMOVED}")
        return OTHERS["impl"](model=model, **kwargs)


PIPELINE_REGISTRY.supported_tasks[TASK] = {
    **OTHERS,
    "impl": PipelineByModel,
    "pt": (AutoModelForSeq2SeqLM,),
}
