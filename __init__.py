"""GLM (General Language Model, ACL 2022) for Hugging Face Transformers."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .collation_glm import GLMDataCollator as GLMDataCollator
    from .collation_glm import GLMMultipleChoiceCollator as GLMMultipleChoiceCollator
    from .collation_glm import GLMPackingCollator as GLMPackingCollator
    from .collation_glm import GLMPooledChoiceCollator as GLMPooledChoiceCollator
    from .configuration_glm import GLMConfig as GLMConfig
    from .modeling_glm import GLMForConditionalGeneration as GLMForConditionalGeneration
    from .modeling_glm import GLMForMultipleChoice as GLMForMultipleChoice
    from .modeling_glm import GLMForSequenceClassification as GLMForSequenceClassification
    from .modeling_glm import GLMModel as GLMModel
    from .modeling_glm import GLMPreTrainedModel as GLMPreTrainedModel
    from .pipeline_glm import GLMText2TextGenerationPipeline as GLMText2TextGenerationPipeline
    from .streaming_glm import PieceChunk as PieceChunk
    from .streaming_glm import PieceIteratorStreamer as PieceIteratorStreamer
    from .streaming_glm import PieceStreamer as PieceStreamer
    from .tokenization_glm import GLMTokenizerFast as GLMTokenizerFast
# In a checkout pytest imports this file as a plain top-level module, where relative imports
# cannot work.
elif __name__ != "__init__":
    from .lazy import lazy_exports

    __getattr__ = lazy_exports(
        __name__,
        {
            "GLMConfig": ".configuration_glm",
            "GLMDataCollator": ".collation_glm",
            "GLMForConditionalGeneration": ".modeling_glm",
            "GLMForMultipleChoice": ".modeling_glm",
            "GLMForSequenceClassification": ".modeling_glm",
            "GLMModel": ".modeling_glm",
            "GLMMultipleChoiceCollator": ".collation_glm",
            "GLMPackingCollator": ".collation_glm",
            "GLMPooledChoiceCollator": ".collation_glm",
            "GLMPreTrainedModel": ".modeling_glm",
            "GLMText2TextGenerationPipeline": ".pipeline_glm",
            "GLMTokenizerFast": ".tokenization_glm",
            "PieceChunk": ".streaming_glm",
            "PieceIteratorStreamer": ".streaming_glm",
            "PieceStreamer": ".streaming_glm",
        },
    )
