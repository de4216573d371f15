"""examples/ablations.py: what is finished stays, what was killed goes on; table and page."""

import json
import sys

import pytest
from checkout import ROOT

EXAMPLES = ROOT / "examples"
STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def examples():
    """The folder's programs can be imported."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def ablations(monkeypatch):
    """The program, with a tiny corpus and two variants."""
    import ablations
    import corpus

    monkeypatch.setattr(corpus, "DOCUMENTS", 150)
    monkeypatch.setattr(corpus, "VALIDATION_DOCUMENTS", 4)
    monkeypatch.setattr(corpus, "QUESTIONS", {"[MASK]": 3, "[sMASK]": 1, "[gMASK]": 1})
    variants = {name: ablations.VARIANTS[name] for name in ("the mix", "no second position")}
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    return ablations


class Killed(Exception):
    pass


def test_a_killed_command_goes_on(ablations, tmp_path, monkeypatch, capsys):
    """Killed before a repository is written, before it is measured, and not at all."""
    import torch

    from glm_transformers.evaluation.model import load
    from glm_transformers.training import pretrain

    begun = []
    train, evaluate, write = ablations.pretrain, ablations.evaluate, pretrain.write_network

    def recorded(options):
        begun.append((options.output.rpartition("/")[2], options.resume))
        return train(options)

    def killed(*_):
        raise Killed

    monkeypatch.setattr(ablations, "pretrain", recorded)
    for place, name, original in (
        (pretrain, "write_network", write),
        (ablations, "evaluate", evaluate),
    ):
        monkeypatch.setattr(place, name, killed)
        with pytest.raises(Killed):
            ablations.main(tmp_path, steps=STEPS, seeds=1)
        monkeypatch.setattr(place, name, original)
    for _ in range(2):
        ablations.main(tmp_path, steps=STEPS, seeds=1)
    assert begun == [
        ("the-mix-1", False),
        ("the-mix-1", True),
        ("no-second-position-1", False),
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["variant"] for entry in results["runs"]] == list(ablations.VARIANTS)
    for entry in results["runs"]:
        assert set(entry["measures"]) == set(ablations.MEASURES)
    assert not list(tmp_path.glob("*-checkpoints"))

    capsys.readouterr()
    ablations.main(tmp_path, table=True)  # whatever --steps is
    assert capsys.readouterr().out == ablations.make_table(results) + "\n"
    with pytest.raises(ablations.typer.BadParameter, match=f"--steps {STEPS}"):
        ablations.main(tmp_path, steps=STEPS + 1)

    # Without a second position, a piece's tokens are read as they were in training.
    model, tokenizer = load(str(tmp_path / "no-second-position-1"))
    context = tokenizer("Paris is [MASK].").input_ids
    ids = torch.tensor([[*context, tokenizer.sop_token_id, *context[1:4]]])
    blank = context.index(tokenizer.convert_tokens_to_ids("[MASK]"))
    places = [*range(len(context)), *[blank] * 4]
    in_training = torch.tensor([[places, [0] * len(context) + [1] * 4]])
    length = torch.tensor([len(context)])
    with torch.no_grad():
        derived = model(ids).logits
        trained = model(ids, attention_mask=length, position_ids=in_training).logits
    torch.testing.assert_close(derived, trained, atol=1e-5, rtol=0)


def test_table():
    """Mean and deviation of the seeds, in percent but for perplexities; marks; what there is."""
    import ablations

    def entry(variant, share, perplexity):
        measures = {
            name: perplexity if name.startswith("perplexity") else share
            for name in ablations.MEASURES
        }
        return {"variant": variant, "measures": measures}

    runs = [
        entry("token blanks alone", 0.5, 2.0),
        entry("token blanks alone", 0.6, 4.0),
        entry("the mix", 1.0, 12345.6),
    ]
    header, _, mix, token, _, remark = ablations.make_table({"runs": runs}).splitlines()
    assert header.startswith("| | seeds | `[MASK]` | two `[MASK]` | `[sMASK]` | `[gMASK]` |")
    assert mix == "| the mix | 1 |" + " 100.0 |" * 5 + " 12,346 |" * 2
    met, perplexity = "55.0 ± 7.1", "3.00 ± 1.41"
    assert token == (
        f"| token blanks alone | 2 | {met} | {met} | {met}† | {met}† | {met} | {perplexity} "
        f"| {perplexity}† |"
    )
    assert remark.startswith("†")


def test_the_page_has_the_table_of_the_results():
    """And the steps that it names are the command's."""
    import ablations

    results = json.loads((EXAMPLES / "ablation_results.json").read_text(encoding="utf-8"))
    page = (EXAMPLES / "ablations.md").read_text(encoding="utf-8")
    assert ablations.make_table(results) in page
    assert f"{results['steps']:,} steps" in page
