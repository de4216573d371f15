"""Virtual tokens: the prompt methods of peft, and the original's continuous prompts."""

import copy
import warnings

import pytest
import torch
from conftest import EOP, EOS, MASK, SOP, needs_full_reference
from safetensors.torch import load_file, save_file
from transformers import Cache

from glm_transformers import GLMForConditionalGeneration, GLMForSequenceClassification
from glm_transformers.answers_glm import BestAnswersMixin
from glm_transformers.conversion import convert_checkpoint
from glm_transformers.training.prompts import ContinuousPrompt

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")

K = 3  # virtual tokens
NO_DROPOUT = dict(embedding_dropout_prob=0.0, attention_dropout_prob=0.0, output_dropout_prob=0.0)
METHODS = {
    "prefix": lambda **options: peft.PrefixTuningConfig(num_virtual_tokens=K, **options),
    "projected prefix": lambda **options: peft.PrefixTuningConfig(
        num_virtual_tokens=K, prefix_projection=True, encoder_hidden_size=16, **options
    ),
    "prompt": lambda **options: peft.PromptTuningConfig(
        num_virtual_tokens=K, prompt_tuning_init="RANDOM", **options
    ),
    "P-tuning, MLP": lambda **options: peft.PromptEncoderConfig(
        num_virtual_tokens=K, encoder_hidden_size=16, **options
    ),
    "P-tuning, LSTM": lambda **options: peft.PromptEncoderConfig(
        num_virtual_tokens=K,
        encoder_hidden_size=16,
        encoder_reparameterization_type="LSTM",
        **options,
    ),
}
each_method = pytest.mark.parametrize("method", METHODS)

# Three rows, padded on the left; two blanks each.
CONTEXTS = torch.tensor(
    [
        [EOS, EOS, 1, 2, MASK, 4, MASK, 6],
        [5, 6, 7, 8, MASK, 10, 11, MASK],
        [EOS, 3, MASK, MASK, 9, 2, 2, 2],
    ]
)
REAL = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8, [0] + [1] * 7])
PIECES = torch.tensor([[SOP, 20, 21, SOP, 30], [SOP, 22, 21, SOP, 31], [SOP, 23, 24, SOP, 30]])
ANSWERS = torch.tensor([[20, 21, EOP, 30, EOP], [22, 21, EOP, 31, EOP], [23, 24, EOP, 30, EOP]])
BATCH = {
    "input_ids": torch.cat([CONTEXTS, PIECES], dim=1),
    "attention_mask": torch.cat([REAL, torch.ones_like(PIECES)], dim=1),
    "labels": torch.cat([torch.full_like(CONTEXTS, -100), ANSWERS], dim=1),
}
PROMPTS = {"input_ids": CONTEXTS, "attention_mask": REAL}


@pytest.fixture
def wrap(tiny_model):
    """`wrap(method)`: a tiny network behind virtual tokens that are far from zero."""

    def build(method: str, task_type: str | None = "CAUSAL_LM", cls=None, **options):
        model = tiny_model(cls, **NO_DROPOUT, **options)
        torch.manual_seed(3)
        wrapped = peft.get_peft_model(model, METHODS[method](task_type=task_type)).eval()
        with torch.no_grad():
            for parameter in wrapped.prompt_encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        return wrapped

    return build


def written_out(wrapped) -> torch.Tensor:
    """The loss, with every position, who sees whom, and the virtual tokens given by hand."""
    rows, length = BATCH["input_ids"].shape
    context = CONTEXTS.shape[1]
    places = torch.zeros(rows, 2, K + length, dtype=torch.long)
    sees = torch.zeros(rows, 1, K + length, K + length, dtype=torch.bool)
    for row in range(rows):
        places[row, 0, :K] = torch.arange(K)
        first = int((REAL[row] == 0).sum())  # column of the first token
        count = context - first
        places[row, 0, K + first : K + context] = K + torch.arange(count)
        masks = [int(at) for at in (CONTEXTS[row] == MASK).nonzero()]
        blocks = [1, 2, 3, 1, 2]
        for column, (mask, block) in enumerate(
            zip([masks[0]] * 3 + [masks[1]] * 2, blocks, strict=True)
        ):
            places[row, 0, K + context + column] = K + mask - first
            places[row, 1, K + context + column] = block
        visible = [*range(K), *range(K + first, K + context)]
        sees[row, 0, :, visible] = True
        for column in range(K + context, K + length):
            sees[row, 0, column, K + context : column + 1] = True
    base = wrapped.get_base_model()
    virtual = wrapped.get_prompt(rows)
    if isinstance(virtual, Cache):
        logits = base(
            input_ids=BATCH["input_ids"],
            position_ids=places[..., K:],
            attention_mask=sees[:, :, K:],
            past_key_values=virtual,
        ).logits
    else:
        words = base.get_input_embeddings()(BATCH["input_ids"])
        logits = base(
            inputs_embeds=torch.cat([virtual, words], dim=1),
            position_ids=places,
            attention_mask=sees,
        ).logits[:, K:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), BATCH["labels"].flatten())


@each_method
def test_the_loss_is_that_of_virtual_tokens_in_front_of_the_context(wrap, method):
    wrapped = wrap(method)
    loss = wrapped(**BATCH).loss
    torch.testing.assert_close(loss, written_out(wrapped), atol=1e-5, rtol=0)


@each_method
def test_training(wrap, method):
    wrapped = wrap(method).train()
    frozen = copy.deepcopy(wrapped.get_base_model().state_dict())
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(20):
        loss = wrapped(**BATCH).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, weight in wrapped.get_base_model().state_dict().items():
        assert torch.equal(weight, frozen[name]), name


def filled_by_hand(wrapped, ids: torch.Tensor, tokens: int) -> list[int]:
    """Greedy answers of one row, the whole text read anew for every token.

    In place of an end token the next start is read, as in training.
    """
    blanks = int((ids == MASK).sum())
    ids = torch.cat([ids, torch.tensor([SOP])])
    length = len(ids)
    while len(ids) < length + tokens and int((ids[length:] == EOP).sum()) < blanks:
        read = torch.where(ids == EOP, SOP, ids)[None]
        with torch.no_grad():
            logits = wrapped(input_ids=read, attention_mask=torch.ones_like(read)).logits
        ids = torch.cat([ids, logits[0, -1].argmax()[None]])
    return ids[length:].tolist()


@each_method
def test_generation_is_that_of_whole_passes_alone_and_in_a_padded_batch(wrap, method):
    wrapped = wrap(method)
    with torch.no_grad():  # the end becomes a little likelier than what is said most
        words = wrapped.get_base_model().get_input_embeddings().weight
        said = wrapped.generate(**PROMPTS, max_new_tokens=7)[:, CONTEXTS.shape[1] + 1 :]
        words[EOP] = 1.05 * words[said.mode().values.mode().values]
    together = wrapped.generate(**PROMPTS, max_new_tokens=7)
    ends = 0
    for row, (ids, real) in enumerate(zip(CONTEXTS, REAL, strict=True)):
        ids = ids[real.bool()]
        expected = filled_by_hand(wrapped, ids, tokens=7)
        ends += expected.count(EOP)
        alone = wrapped.generate(input_ids=ids[None], max_new_tokens=7)[0]
        assert alone.tolist() == [*ids.tolist(), SOP, *expected], "the prompt, then the pieces"
        of_batch = together[row, CONTEXTS.shape[1] + 1 :].tolist()
        assert of_batch[: len(expected)] == expected
        beams = wrapped.generate(input_ids=ids[None], max_new_tokens=7, num_beams=3)[0]
        of_batch = wrapped.generate(**PROMPTS, max_new_tokens=7, num_beams=3)[row]
        first = int((real == 0).sum())
        assert of_batch[first:][: len(beams)].tolist() == beams.tolist()
    assert ends > 0, "else nothing was tested of the second blank"


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_best_answers_see_the_virtual_tokens(wrap, method):
    """Their probabilities are those of a forward behind the virtual tokens."""
    wrapped = wrap(method)
    allowed = [[[[20, 21]], [[30]]], [[[22, 21]], [[31]]], [[[23, 24]], [[30]]]]
    best = BestAnswersMixin.best_answers(wrapped, **PROMPTS, k=1, allowed_answers=allowed)
    batch = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = wrapped(**batch).logits[:, -ANSWERS.shape[1] :]
    log_probs = logits.log_softmax(-1).gather(-1, ANSWERS[..., None])[..., 0]  # (B, G)
    expected = torch.stack([log_probs[:, :3].sum(-1), log_probs[:, 3:].sum(-1)], dim=1)
    found = torch.tensor([[answers[0].log_prob for answers in row] for row in best.answers])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@each_method
def test_ways_of_generating(wrap, method):
    wrapped = wrap(method)
    expected = wrapped.generate(**PROMPTS, max_new_tokens=6)
    length = CONTEXTS.shape[1] + 7
    assert torch.equal(wrapped.generate(CONTEXTS, attention_mask=REAL, max_length=length), expected)
    assert torch.equal(wrapped.generate(**BATCH, max_new_tokens=6), expected), "contexts alone"
    sampled = wrapped.generate(**PROMPTS, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert sampled.shape[0] == 2 * len(CONTEXTS)
    short = wrapped.generate(**PROMPTS, max_new_tokens=6, max_piece_length=2)
    for piece in short[:, CONTEXTS.shape[1] + 1 :].tolist():
        assert EOP in piece[:3], "a piece of two tokens has ended"
    scores = wrapped.generate(
        **PROMPTS, max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(scores.sequences, expected)


@each_method
def test_the_network_itself_stays_as_it_was(wrap, method):
    wrapped = wrap(method)
    base = wrapped.get_base_model()
    alone = base.generate(**PROMPTS, max_new_tokens=5)
    behind = wrapped.generate(**PROMPTS, max_new_tokens=5)
    assert not torch.equal(alone, behind)
    assert torch.equal(base.generate(**PROMPTS, max_new_tokens=5), alone)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped.generate(**PROMPTS, max_new_tokens=5), alone)
    assert torch.equal(wrapped.generate(**PROMPTS, max_new_tokens=5), behind)


@each_method
def test_sdpa_equals_eager(wrap, method):
    expected, wrapped = wrap(method), wrap(method, attn_implementation="sdpa")
    torch.testing.assert_close(wrapped(**BATCH).loss, expected(**BATCH).loss, atol=1e-5, rtol=0)
    generated = expected.generate(**PROMPTS, max_new_tokens=5)
    assert torch.equal(wrapped.generate(**PROMPTS, max_new_tokens=5), generated)


@each_method
def test_saved_and_loaded(wrap, method, tmp_path):
    wrapped = wrap(method)
    wrapped.save_pretrained(tmp_path)
    base = copy.deepcopy(wrapped.get_base_model())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(**BATCH).loss, wrapped(**BATCH).loss, atol=1e-6, rtol=0)
    generated = wrapped.generate(**PROMPTS, max_new_tokens=5)
    assert torch.equal(loaded.generate(**PROMPTS, max_new_tokens=5), generated)


@each_method
def test_a_model_with_a_decoder_is_another_one(wrap, method):
    wrapped = wrap(method, task_type="SEQ_2_SEQ_LM")
    with pytest.raises(ValueError, match='task_type="CAUSAL_LM"'):
        wrapped(**BATCH)
    with pytest.raises(ValueError, match='task_type="CAUSAL_LM"'):
        wrapped.generate(**PROMPTS)


def test_labels_in_the_context_behind_a_prefix(wrap):
    with pytest.raises(ValueError, match="Labels lie in the context"):
        wrap("prefix")(**{**BATCH, "labels": BATCH["input_ids"]})


def test_positions_that_peft_would_move(wrap):
    """It adds the length of the prefix to both rows, and would make the context a piece."""
    places = torch.zeros(3, 2, BATCH["input_ids"].shape[1], dtype=torch.long)
    with pytest.raises(ValueError, match="leave position_ids out"):
        wrap("prefix")(**BATCH, position_ids=places)


def test_a_prefix_is_in_the_cache(wrap):
    with pytest.raises(ValueError, match="use_cache=False"):
        wrap("prefix").generate(**PROMPTS, use_cache=False)


@each_method
def test_a_text_that_is_too_long_behind_virtual_tokens(wrap, method):
    wrapped = wrap(method, max_sequence_length=8)  # 9 positions
    longer = {name: tensor[1:2] for name, tensor in BATCH.items()}
    with pytest.raises(ValueError, match="takes 11 positions"):
        wrapped(**longer)
    with pytest.raises(ValueError, match="positions"):
        wrapped.generate(input_ids=CONTEXTS[1:2], max_new_tokens=2)


def test_new_tokens_behind_a_cache_need_their_positions(tiny_model):
    model = tiny_model()
    cache = model(input_ids=torch.cat([CONTEXTS, PIECES[:, :1]], dim=1)).past_key_values
    with pytest.raises(ValueError, match="pass position_ids"):
        model(input_ids=PIECES[:, 1:], past_key_values=cache)


@pytest.mark.parametrize("method", ["prompt", "P-tuning, MLP"])
def test_a_classifier(wrap, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = wrap(method, "SEQ_CLS", GLMForSequenceClassification).train()
    labels = torch.tensor([0, 1, 1])
    optimizer = torch.optim.Adam(wrapped.prompt_encoder.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = wrapped(**PROMPTS, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# --- The original's continuous prompts ------------------------------------------------------------


@needs_full_reference("continuous prompts")
def test_continuous_prompts_give_the_results_of_the_original(reference, tmp_path):
    repository = convert_checkpoint(
        reference / "checkpoints/tiny-prompt-lstm",
        tmp_path / "repository",
        tokenizer="none",
        num_attention_heads=4,
    )
    stored = load_file(reference / "goldens/wrappers.safetensors")
    golden = {
        name.removeprefix("prompt."): tensor
        for name, tensor in stored.items()
        if name.startswith("prompt.")
    }
    prompt = ContinuousPrompt.from_pretrained(str(repository))
    assert (prompt() - golden["prompt_embeddings"][0]).abs().max() < 1e-4
    model = GLMForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()
    embeds = model.get_input_embeddings()(golden["input_ids"])
    with torch.no_grad():
        logits = model(
            input_ids=golden["input_ids"],
            inputs_embeds=prompt.fill(embeds, golden["prompt_pos"]),
            position_ids=golden["position_ids"],
        ).logits
    assert (logits - golden["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("has_lstm, has_mlp", [(True, True), (False, True), (False, False)])
def test_continuous_prompts_of_each_form(made_repository, tmp_path, has_lstm, has_mlp):
    torch.manual_seed(1)
    made = ContinuousPrompt(4, 16, has_lstm, has_mlp)
    weights = {f"prompt_spell.{name}": tensor for name, tensor in made.state_dict().items()}
    (tmp_path / "config.json").write_text((made_repository / "config.json").read_text())
    save_file(weights, tmp_path / "prompt_spell.safetensors")
    loaded = ContinuousPrompt.from_pretrained(str(tmp_path))
    assert torch.equal(loaded(), made())


def test_continuous_prompts_stand_where_they_are_put(tiny_model):
    """A blank stays one: the ids tell where it is, and the embeddings are read."""
    torch.manual_seed(1)
    prompt = ContinuousPrompt(2, 32)
    model = tiny_model()
    words = model.get_input_embeddings()(CONTEXTS)
    columns = torch.tensor([[2, 3], [0, 6], [5, 4]])
    filled = prompt.fill(words, columns)
    for row, of_row in enumerate(columns.tolist()):
        for vector, column in zip(prompt(), of_row, strict=True):
            assert torch.equal(filled[row, column], vector)
    untouched = torch.ones_like(CONTEXTS).scatter(1, columns, 0).bool()
    assert torch.equal(filled[untouched], words[untouched])
    generated = model.generate(**PROMPTS, inputs_embeds=filled, max_new_tokens=5)
    assert not torch.equal(generated, model.generate(**PROMPTS, max_new_tokens=5))
    model.requires_grad_(False)
    ids = BATCH["input_ids"]
    embeds = prompt.fill(model.get_input_embeddings()(ids), columns)
    model(**BATCH, inputs_embeds=embeds).loss.backward()
    assert prompt.spell_embeddings.weight.grad.abs().sum() > 0


def test_what_is_no_continuous_prompt(made_repository):
    with pytest.raises(ValueError, match=r"has no prompt_spell\.safetensors"):
        ContinuousPrompt.from_pretrained(str(made_repository))
    with pytest.raises(ValueError, match=r"needs spell_embeddings\.weight"):
        ContinuousPrompt.of({})
    table = {"spell_embeddings.weight": torch.zeros(4, 8)}
    with pytest.raises(ValueError, match="no continuous prompt"):
        ContinuousPrompt.of({**table, "mlp_head.1.weight": torch.zeros(8, 8)})
    prompt = ContinuousPrompt.of(table)
    with pytest.raises(ValueError, match="do not fit"):
        prompt.fill(torch.zeros(2, 5, 8), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="outside"):
        prompt.fill(torch.zeros(2, 5, 8), torch.tensor([[0, 1, 2, 5]] * 2))
