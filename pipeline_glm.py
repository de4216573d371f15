"""The `text2text-generation` pipeline of GLM: text with blanks in, filled blanks out."""

import copy
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, Pipeline, pipelines
from transformers.pipelines import PIPELINE_REGISTRY

TASK = "text2text-generation"

# --- Where versions of Transformers differ --------------------------------------------------------
# 5 removed the task: it refuses the name before it looks for a class.
REMOVED_TASKS = getattr(pipelines, "REMOVED_TASKS", {})


def complete_generate_kwargs(pipeline: Pipeline, generate_kwargs: dict) -> dict:
    """What `generate` is called with: the caller's options, then those of the pipeline itself."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):  # 5
        return pipeline._prepare_generate_kwargs(generate_kwargs)
    config = pipeline.generation_config  # type: ignore[attr-defined]  # 5 has another name for it
    return {"generation_config": config, **generate_kwargs}


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

    Examples:
        >>> fill = pipeline("text2text-generation", model=repository, trust_remote_code=True)
        >>> fill = GLMText2TextGenerationPipeline(model=model, tokenizer=tokenizer)
        >>> fill("Ng is an adjunct professor at [MASK].")[0]["filled_text"]
    """

    model: Any  # a GLM, or one with an adapter around it
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
        }
        if return_text is False and not return_tensors:
            raise ValueError("return_text=False leaves nothing; pass return_tensors=True with it.")
        preprocess = {} if truncation is None else {"truncation": truncation}
        postprocess = {name: value for name, value in postprocess.items() if value is not None}
        return preprocess, generate_kwargs, postprocess

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, str) and not inputs.strip():
            raise ValueError(f"A prompt must be a text with something in it, not {inputs!r}.")
        if isinstance(inputs, list):
            for text in inputs:  # before any work is done
                self._check_text(text)
        results = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(
            isinstance(result, list) and len(result) == 1 for result in results
        ):
            return [result[0] for result in results]
        return results

    def _check_text(self, text):
        if not isinstance(text, str):
            raise ValueError(f"A prompt must be a text, not {text!r}.")
        for token in (self.tokenizer.sop_token, self.tokenizer.eop_token, self.tokenizer.eos_token):
            if token in text:
                raise ValueError(
                    f"A prompt holds {token}, which GLM takes for a command and not for text; "
                    "leave it out."
                )

    def preprocess(self, text: str, truncation=None) -> dict:
        self._check_text(text)
        tokenizer = self.tokenizer
        prompt = text
        if not any(mask in text for mask in tokenizer.masks):
            prompt = f"{text}{'' if text[-1:].isspace() else ' '}{self._continuation_mask()}"
            tokenizer = copy.copy(tokenizer)
            tokenizer.truncation_side = "left"  # what stands at the mask matters most
        encoded = tokenizer(prompt, truncation=truncation, return_tensors="pt")
        return {"text": prompt if text.strip() else "", **encoded}

    def _continuation_mask(self) -> str:
        return "[gMASK]" if "[gMASK]" in self.tokenizer.masks else "[MASK]"

    def _forward(self, model_inputs: dict, **generate_kwargs) -> dict:
        text = model_inputs.pop("text")
        output = self.model.generate(
            **model_inputs, **complete_generate_kwargs(self, generate_kwargs)
        )
        # With return_dict_in_generate the sequences are one of several fields.
        sequences = getattr(output, "sequences", output)  # (B * returned, N)
        batch, length = model_inputs["input_ids"].shape
        return {
            "text": text,
            "length": torch.full((batch,), length),
            "sequences": sequences.view(batch, -1, sequences.shape[-1]),  # (B, returned, N)
        }

    def postprocess(
        self,
        model_outputs: dict,
        return_tensors=False,
        return_text=True,
        clean_up_tokenization_spaces=None,
    ) -> list[dict]:
        text, (sequences,) = model_outputs["text"], model_outputs["sequences"]  # (returned, N)
        options = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        results = []
        for row, pieces in zip(
            sequences, self.tokenizer.decode_pieces(sequences, **options), strict=True
        ):
            pieces = pieces if text else []
            result: dict[str, Any] = {}
            if return_text:
                result["generated_text"] = " ".join(pieces)
                result["blanks"] = pieces
                result["filled_text"] = self.tokenizer.fill(text, pieces)
            if return_tensors:
                result["generated_token_ids"] = row[int(model_outputs["length"]) :]
            results.append(result)
        return results


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
