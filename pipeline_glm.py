"""The `text2text-generation` pipeline of GLM: text with blanks in, filled blanks out."""

from transformers import Pipeline


def _complete_generate_kwargs(pipeline: Pipeline, generate_kwargs: dict) -> dict:
    """Add what was given to the pipeline itself: the one place where Transformers 5 and 4.57 differ."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):
        return pipeline._prepare_generate_kwargs(generate_kwargs)
    return {"generation_config": pipeline.generation_config, **generate_kwargs}


class GLMText2TextGenerationPipeline(Pipeline):
    """Fills the blanks of a text.

    Returns, for each text, a dictionary: `blanks`, the pieces in the order of the masks; `generated_text`, the pieces
    joined by a space; `filled_text`, the text with its blanks filled. A string gives a list of one dictionary for each
    returned sequence, a list of strings gives a list of these (flat, if there is one for each).

    A text without a mask is continued: `[gMASK]` is appended, or `[MASK]` for a model that was not trained with it, as
    the original does. Other arguments go to `generate`.

    Example:
        >>> fill = pipeline("text2text-generation", model=repository, trust_remote_code=True)
        >>> fill("Ng is an adjunct professor at [MASK].")[0]["filled_text"]
    """

    _pipeline_calls_generate = True
    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def _sanitize_parameters(self, truncation=None, **generate_kwargs):
        preprocess = {"truncation": truncation} if truncation is not None else {}
        return preprocess, generate_kwargs, {}

    def __call__(self, inputs, **kwargs):
        results = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(
            isinstance(result, list) and len(result) == 1 for result in results
        ):
            return [result[0] for result in results]
        return results

    def preprocess(self, text: str, truncation=None) -> dict:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"A prompt must be a text with something in it, not {text!r}.")
        if not any(
            mask in text
            for mask in self.tokenizer.convert_ids_to_tokens(self.tokenizer.mask_token_ids)
        ):
            text = f"{text}{'' if text[-1].isspace() else ' '}{self._continuation_mask()}"
        return {"text": text, **self.tokenizer(text, truncation=truncation, return_tensors="pt")}

    def _continuation_mask(self) -> str:
        masks = self.tokenizer.convert_ids_to_tokens(self.tokenizer.mask_token_ids)
        return "[gMASK]" if "[gMASK]" in masks else "[MASK]"

    def _forward(self, model_inputs: dict, **generate_kwargs) -> dict:
        text = model_inputs.pop("text")
        output = self.model.generate(
            **model_inputs, **_complete_generate_kwargs(self, generate_kwargs)
        )
        sequences = getattr(
            output, "sequences", output
        )  # with return_dict_in_generate they are one of several fields
        batch = model_inputs["input_ids"].shape[0]
        return {
            "text": text,
            "sequences": sequences.view(batch, -1, sequences.shape[-1]),
        }  # (B, returned, N)

    def postprocess(self, model_outputs: dict) -> list[dict]:
        text, (sequences,) = model_outputs["text"], model_outputs["sequences"]  # (returned, N)
        return [
            {
                "generated_text": " ".join(pieces),
                "blanks": pieces,
                "filled_text": self.tokenizer.fill(text, pieces),
            }
            for pieces in self.tokenizer.decode_pieces(sequences)
        ]
