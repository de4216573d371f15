"""The loss of blank infilling, in pretraining and in fine-tuning on answers."""

from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

from ..modeling_glm import NOT_A_TARGET, GLMForConditionalGeneration


class GLMForBlankInfilling(GLMForConditionalGeneration):
    """GLM whose loss computes logits only where there is a target: most of a batch is context.

    label_smoothing: share of the loss, in training, that all rows of the vocabulary get alike.
    """

    _auto_class = None  # a repository holds the class that it is made of
    label_smoothing = 0.0

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        """Inputs as the collators make them.

        Returns:
            The mean over the targets, or their sum divided by `num_items_in_batch`, the targets of
            all batches of a step. Without labels, which is in generation, what the network returns.
        """
        if labels is None:
            return super().forward(input_ids, attention_mask, position_ids, **kwargs)
        kwargs["use_cache"] = False
        states = self.glm(
            input_ids,
            attention_mask,
            position_ids,
            **kwargs,
        ).last_hidden_state  # (B, T, H)
        targets = labels != NOT_A_TARGET  # (B, T)
        logits = F.linear(states[targets], self.glm.word_embeddings.weight)  # (targets, V)
        loss = F.cross_entropy(
            logits.float(),
            labels[targets],
            reduction="sum",
            # The library's is the original's: (1 - e) nll - e mean of log p (FACTS section 8).
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        count = targets.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss / count)
