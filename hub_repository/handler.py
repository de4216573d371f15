"""What Hugging Face Inference Endpoints calls: the serverless service runs no code from a repository, an endpoint does."""

from transformers import pipeline


class EndpointHandler:
    """Fills the blanks of texts.

    A request is {"inputs": a text or a list of texts, "parameters": arguments of `generate`, optional}; the answer is
    that of the `text2text-generation` pipeline.
    """

    def __init__(self, path: str = ""):
        self.fill = pipeline(
            "text2text-generation", model=path, trust_remote_code=True, dtype="auto"
        )

    def __call__(self, data: dict) -> list:
        """
        Raises:
            ValueError: if the request has no inputs, or parameters that are not named.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not inputs:
            raise ValueError('The request has no texts; send {"inputs": "a text with a [MASK]"}.')
        if not isinstance(parameters, dict):
            raise ValueError(
                'The parameters must be named; send them like {"parameters": {"max_new_tokens": 32}}.'
            )
        return self.fill(inputs, **parameters)
