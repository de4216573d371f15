"""GLM (General Language Model, ACL 2022) for Hugging Face Transformers."""

# In a checkout pytest imports this file as a plain top-level module, where relative imports cannot work.
if __name__ != "__init__":
    from .configuration_glm import GLMConfig
    from .modeling_glm import (
        GLMForConditionalGeneration,
        GLMForMultipleChoice,
        GLMForSequenceClassification,
        GLMModel,
        GLMPreTrainedModel,
    )
    from .pipeline_glm import GLMText2TextGenerationPipeline
    from .tokenization_glm import GLMTokenizerFast

__version__ = "0.1.0"
