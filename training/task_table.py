"""The tasks of the original: every pattern and format of its fine-tuning (FACTS sections 7 and 8).

Limits and settings are those of its config_tasks scripts, whose names stand beside them.
"""

from collections.abc import Callable

from . import official
from .expanding import (
    mask_at_random,
    mirror_copa,
    one_per_answer,
    record_answers,
    slice_answered,
    slice_documents,
    wsc_positives,
)
from .official import Official
from .patterns import MASK, SENTENCE, SEPARATOR, Cut, Pattern
from .tasks import Settings, Task
from .templates import Example

# --- What takes more than a filter ----------------------------------------------------------------


def copa_joiner(example: Example) -> Example:
    """How the premise of COPA goes on: with its cause, or with its effect."""
    joiners = {"cause": " because", "effect": ", so"}
    question = example["question"]
    if question not in joiners:
        raise ValueError(f"The question of a COPA example is {question!r}; it is cause or effect.")
    # The pooled classifier reads a joiner without the comma.
    pooled = joiners[question].removeprefix(",")
    return {**example, "joiner": joiners[question], "pooled_joiner": pooled}


def mark_pronoun(example: Example) -> Example:
    """WSC: stars around the pronoun, which the text is split into words to find."""
    words = example["text_a"].split()
    place = example["span2_index"]
    if not 0 <= place < len(words):
        raise ValueError(f"A WSC example has {len(words)} words; its span2_index is {place}.")
    words[place] = f"*{words[place]}*"
    candidates = example.get("candidates") or []  # only some collections have them
    return {**example, "candidates": candidates, "text_a": " ".join(words)}


def mark_spans(example: Example) -> Example:
    """CLUEWSC: stars around the pronoun, # around what it may mean; here a word is a character."""
    characters = list(example["text_a"])
    for span, mark in (("span2", "*"), ("span1", "#")):
        first = example[f"{span}_index"]
        last = first + len(example[f"{span}_text"]) - 1
        if not 0 <= first <= last < len(characters):
            raise ValueError(
                f"A CLUEWSC example has {len(characters)} characters; its {span}_index is {first}."
            )
        characters[first] = mark + characters[first]
        characters[last] = characters[last] + mark
    return {**example, "text_a": "".join(characters)}


def split_query(example: Example) -> Example:
    """ReCoRD: what stands before and behind the placeholder of the query."""
    before, placeholder, behind = example["text_b"].partition("@placeholder")
    if not placeholder:
        raise ValueError(f"The query {example['text_b']!r} of ReCoRD holds no @placeholder.")
    return {**example, "before": before, "behind": behind}


def split_question(example: Example) -> Example:
    """RACE: a question with a gap, _, is filled there; any other is answered behind it."""
    question = " " + example["text_b"]
    before, gap, behind = question.partition("_")
    if gap:
        fields = {"asks": "", "before": before.rstrip(), "answers": "", "behind": behind}
    else:
        fields = {"asks": " Question:", "before": question, "answers": " Answer:", "behind": ""}
    return {**example, **fields}


# --- Choices --------------------------------------------------------------------------------------

YES_NO = (" Yes", " No")
NO_YES = (" No", " Yes")


def entailment(words: tuple[str, ...]) -> tuple[Pattern, ...]:
    """Patterns 0 to 3 of RTE and CB: the hypothesis is asked, and the premise tells."""
    hypothesis = Cut("{text_b:without_end}")
    return (
        Pattern(
            ['"', hypothesis, '" ?'],
            words,
            second=[MASK, ",", ' "', Cut("{text_a}"), '"'],
        ),
        Pattern([hypothesis, "?"], words, second=[MASK, ",", Cut(" {text_a}")]),
        Pattern(['"', hypothesis, '" ?'], words, second=[MASK, '. "', Cut("{text_a}"), '"']),
        Pattern([hypothesis, "?"], words, second=[MASK, ".", Cut(" {text_a}")]),
    )


RTE = (
    *entailment(YES_NO),
    Pattern(
        [
            Cut("{text_a}"),
            " question:",
            Cut(" {text_b:without_end}"),
            " True or False?",
            " answer:",
            MASK,
        ],
        [" true", " false"],
    ),
)

CB = (
    *entailment((" Yes", " No", " Maybe")),
    Pattern(
        [
            Cut("{text_a}"),
            " question:",
            Cut(" {text_b}"),
            " true, false or neither?",
            " answer:",
            MASK,
        ],
        [" true", " false", " neither"],
    ),
)


def boolq(words: tuple[str, ...]) -> tuple[Pattern, ...]:
    """The three patterns of BoolQ, each of which it has with two pairs of words."""
    question = Cut(" {text_b}")
    return (
        Pattern([Cut("{text_a}"), " Question:", question, "? Answer:", MASK, "."], words),
        Pattern(
            [Cut("{text_a}"), " Based on the previous passage,", question, "?", MASK, "."],
            words,
        ),
        Pattern(
            ["Based on the following passage", question, "?", MASK, ".", Cut(" {text_a}")],
            words,
        ),
    )


BOOLQ = tuple(
    pattern
    for pair in zip(boolq(NO_YES), boolq((" false", " true")), strict=True)
    for pattern in pair
)

PASSAGE = Cut("{text_a:right_strip,without_end}")
QUESTION = " {text_b:right_strip,without_end}"
MULTIRC = (
    Pattern(
        [PASSAGE, ".", " Question:", QUESTION + "?", " Is it", " {answer}", "?", MASK, "."],
        NO_YES,
    ),
    Pattern(
        [
            PASSAGE,
            ".",
            " Question:",
            QUESTION,
            "?",
            ' Is the correct answer "',
            "{answer}",
            '"?',
            MASK,
            ".",
        ],
        NO_YES,
    ),
    Pattern(
        [
            PASSAGE,
            ". Based on the previous passage,",
            QUESTION,
            "?",
            ' Is "',
            "{answer}",
            '" a correct answer?',
            MASK,
            ".",
        ],
        NO_YES,
    ),
    Pattern([PASSAGE, QUESTION, "- [", MASK, "]", "{answer}"], [" False", " True"]),
    Pattern(
        [PASSAGE, ".", " Question:", QUESTION, "?", " {answer}", "?", MASK, "."],
        NO_YES,
    ),
)

WIC = (
    Pattern(
        [Cut('"{text_a}" / "{text_b}"'), ' Similar sense of "{word}"?', MASK, "."],
        NO_YES,
    ),
    Pattern(
        [
            Cut("{text_a}"),
            Cut(" {text_b}"),
            " Does {word} have the same meaning in both sentences?",
            MASK,
        ],
        NO_YES,
    ),
    Pattern(
        [
            "{word}",
            " .",
            ' Sense (1) (a) "',
            Cut("{text_a}"),
            '"',
            " (",
            MASK,
            ') "',
            "{text_b}",
            '"',
        ],
        ["2", "b"],
    ),
)

COPA_CHOICES = (" {choice1:lower_first,without_end}", " {choice2:lower_first,without_end}")
COPA = (
    Pattern(
        [
            '"',
            "{choice1:lower_first,without_end}",
            '" or "',
            "{choice2:lower_first,without_end}",
            '"?',
            Cut(" {text_a:without_end}"),
            "{joiner}",
            MASK,
            ".",
        ],
        COPA_CHOICES,
    ),
    Pattern(
        [
            "{choice1:lower_first,without_end}",
            " or",
            " {choice2:lower_first,without_end}",
            "?",
            Cut(" {text_a:without_end}"),
            "{joiner}",
            MASK,
            ".",
        ],
        COPA_CHOICES,
    ),
)


def pronoun(*answers: str) -> tuple[Pattern, ...]:
    """The patterns of WSC."""
    refers = "the pronoun '*{span2_text}*' refers to"
    question = "what does the pronoun '*{span2_text}*' refer to?"
    return (
        Pattern([Cut("{text_a}"), " T" + refers[1:], MASK, "."], answers),
        Pattern([Cut("{text_a}"), " In the previous sentence, " + refers, MASK, "."], answers),
        Pattern(
            [
                Cut("{text_a}"),
                " Question: In the passage above, " + question,
                " Answer:",
                MASK,
                ".",
            ],
            answers,
        ),
    )


RECORD = Pattern(
    [Cut("{text_a}"), " {before:right_strip}", MASK, "{behind}"],
    [" {candidates}"],
)

RACE = (
    Pattern(
        [Cut("{text_a}")],
        [" {choices}"],
        second=["{asks}", Cut("{before}"), "{answers}", MASK, Cut("{behind}")],
    ),
    Pattern(
        [Cut("{text_a}")],
        [" {choices}"],
        second=[" Based on the previous passage,", Cut("{before}"), MASK, Cut("{behind}")],
    ),
)


def news(words: tuple[str, ...], what: str) -> tuple[Pattern, ...]:
    """The patterns of AGNews and Yahoo."""
    texts = [Cut("{text_a}"), Cut("{text_b}")]
    return (
        Pattern([MASK, ":", *texts], words),
        Pattern([MASK, what, *texts], words),
        Pattern([texts[0], "(", MASK, ")", texts[1]], words),
        Pattern([*texts, "(", MASK, ")"], words),
        Pattern(["[ Category:", MASK, "]", *texts], words),
        Pattern([MASK, "-", *texts], words),
    )


def review(words: tuple[str, ...]) -> tuple[Pattern, ...]:
    """The patterns of Yelp."""
    text = Cut("{text_a}")
    return (
        Pattern(["It was", MASK, ".", text], words),
        Pattern([text, ". All in all, it was", MASK, "."], words),
        Pattern(["Just", MASK, "!"], words, second=[text]),
        Pattern([text], words, second=[" In summary, the restaurant is", MASK, "."]),
    )


def mnli(words: tuple[str, ...]) -> tuple[Pattern, ...]:
    premise, hypothesis = Cut("{text_a:without_end}"), Cut("{text_b}")
    return (
        Pattern(['"', premise, '" ?'], words, second=[MASK, ', "', hypothesis, '"']),
        Pattern([premise, "?"], words, second=[MASK, ",", hypothesis]),
    )


MNLI = (*mnli((" Wrong", " Right", " Maybe")), *mnli((" No", " Yes", " Maybe")))

QNLI = (
    Pattern(
        [
            Cut("{text_b}"),
            " Question:",
            Cut(" {text_a:without_end}"),
            "? Do you know the answer?",
            MASK,
            ".",
        ],
        YES_NO,
    ),
    Pattern(
        [
            Cut("{text_b}"),
            " Based on the previous passage, do you know the answer",
            Cut(" {text_a:without_end}"),
            "?",
            MASK,
            ".",
        ],
        YES_NO,
    ),
    Pattern(
        [
            "Based on the following passage, do you know the answer",
            Cut(" {text_a:without_end}"),
            "?",
            MASK,
            ".",
            Cut(" {text_b}"),
        ],
        YES_NO,
    ),
)

SST2 = (
    Pattern([Cut("{text_a}"), " It was", MASK, "."], [" terrible", " great"]),
    Pattern([Cut("{text_a}"), " It was", MASK, "."], [" bad", " good"]),
)
COLA = Pattern(['"', Cut("{text_a}"), '"', " This is", MASK, "."], [" incorrect", " correct"])
MRPC = (
    Pattern([Cut("{text_a}")], NO_YES, second=[MASK, ", ", Cut("{text_b:lower_first}")]),
    Pattern(
        [Cut("{text_a}")],
        NO_YES,
        second=[" Does it mean that", Cut("{text_b:lower_first,without_end}"), "?", MASK],
    ),
)
QQP = (
    Pattern(
        [Cut("{text_a}")],
        NO_YES,
        second=[" Do you mean ", Cut("{text_b:lower_first}"), MASK, "."],
    ),
    Pattern([Cut("{text_a}")], NO_YES, second=[MASK, ", ", Cut("{text_b:lower_first}")]),
)

TNEWS_LABELS = {
    "100": "故事",
    "101": "文化",
    "102": "娱乐",
    "103": "体育",
    "104": "金融",
    "106": "居家",
    "107": "汽车",
    "108": "教育",
    "109": "科技",
    "110": "军事",
    "112": "旅游",
    "113": "世界",
    "114": "股票",
    "115": "农业",
    "116": "游戏",
}
TNEWS = Pattern(
    ["标题：", Cut("{text_a}"), "关键词：", Cut("{text_b}"), "类别：", MASK],
    tuple(TNEWS_LABELS.values()),
)
AFQMC = (
    Pattern(
        [Cut("{text_a}"), "？"],
        ["▁不是", "▁是"],
        second=["你是说", Cut("{text_b}"), "？", MASK, "。"],
    ),
    Pattern(
        [Cut("{text_a}"), "？"],
        ["▁不是", "▁是"],
        second=[MASK, "，", Cut("{text_b}")],
    ),
)
CLUEWSC = (
    Pattern([Cut("{text_a}"), "代词'*{span2_text}*'", MASK, "指#{span1_text}#."], ["不是", "是"]),
    Pattern(
        [
            "在如下的句子中：",
            Cut("{text_a}"),
            "代词'*{span2_text}*'",
            MASK,
            "指'#{span1_text}#'.",
        ],
        ["不是", "是"],
    ),
)

# --- Labels: as in the original's files, then as the Hub's data has them --------------------------

FALSE_TRUE = (("false", False, 0, "False"), ("true", True, 1, "True"))
ZERO_ONE = ((0, "0", False), (1, "1", True))
ENTAILS = (("entailment", 0), ("not_entailment", 1))


def numbered(first: int, count: int) -> tuple[tuple[str, int], ...]:
    """Labels that the original's files count from `first`, in text, and the Hub from 0."""
    return tuple((str(first + number), number) for number in range(count))


# --- What the pooled classifier reads (FACTS section 6) -------------------------------------------

TWO_TEXTS = Pattern(["{text_a}", SEPARATOR, "{text_b}"])
ONE_TEXT = Pattern(["{text_a}"])


# --- Settings -------------------------------------------------------------------------------------


def settings(script: str, epochs: int, **others) -> Settings:
    return Settings(origin=f"config_tasks/{script}.sh of the original", epochs=epochs, **others)


def writing(script: str, epochs: int, **others) -> Settings:
    """What all scripts of seq2seq tasks share."""
    shared = dict(warmup=0.06, label_smoothing=0.1, num_beams=5)
    return settings(script, epochs, **{**shared, **others})


def named(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


CHOICES = named(
    Task(
        "boolq",
        "choices",
        BOOLQ,
        pattern=4,
        labels=FALSE_TRUE,
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        settings=settings("task_boolq", epochs=20),
        official=official.BOOLQ,
    ),
    Task(
        "cb",
        "choices",
        CB,
        pattern=3,
        labels=(("entailment", 0), ("contradiction", 1), ("neutral", 2)),
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        metrics=("accuracy", "f1_macro"),
        settings=settings("task_cb", epochs=50),
        official=official.RTE,
    ),
    Task(
        "copa",
        "choices",
        COPA,
        labels=ZERO_ONE,
        max_length=256,
        prepare=copa_joiner,
        expand=mirror_copa,
        pooled=Pattern(
            ["{text_a:plain_quotes}{pooled_joiner}", SEPARATOR, "{choice:plain_quotes}"],
            ["{choice1}", "{choice2}"],
        ),
        settings=settings("task_copa", epochs=50),
        official=official.COPA,
    ),
    Task(
        "multirc",
        "choices",
        MULTIRC,
        labels=ZERO_ONE,
        one_token=True,
        max_length=512,
        pooled=Pattern(["{text_a}", SEPARATOR, "{text_b} answer: {answer}"]),
        group="question_idx",
        metrics=("f1", "question_exact_match", "accuracy"),
        settings=settings("task_multirc", epochs=15),
        official=official.MULTIRC,
    ),
    Task(
        "record",
        "choices",
        (RECORD,),
        labels=(("0", 0), ("1", 1)),
        max_length=512,
        prepare=split_query,
        expand=record_answers,
        pooled=Pattern(["{text_a}", SEPARATOR, "{text_b}", "{choice}"], ["{candidates}"]),
        references="answers",
        metrics=("token_f1", "normalized_match"),
        settings=settings("task_record", epochs=5, batch_size=64),
        official=official.RECORD,
    ),
    *(
        Task(
            name,
            "choices",
            RTE,
            labels=ENTAILS,
            one_token=True,
            max_length=256,
            pooled=TWO_TEXTS,
            settings=settings("task_rte", epochs=50),
            official=data,
        )
        for name, data in (
            ("rte", official.RTE),
            ("axb", official.AXB),
            ("axg", official.AXG),
        )
    ),
    Task(
        "wic",
        "choices",
        WIC,
        pattern=1,
        labels=FALSE_TRUE,
        one_token=True,
        max_length=256,
        pooled=Pattern(["{word}: {text_a}", SEPARATOR, "{text_b}"]),
        settings=settings("task_wic", epochs=30),
        official=official.WIC,
    ),
    Task(
        "wsc",
        "choices",
        pronoun(" {span1_text}", " {candidates}"),
        pattern=2,
        labels=(("True", True, 1),),
        no_choice=("False", False, 0),
        max_length=128,
        prepare=mark_pronoun,
        expand=wsc_positives,
        settings=settings("task_wsc", epochs=50),
        official=official.WSC,
    ),
    Task(
        "race",
        "choices",
        RACE,
        labels=(("A", 0), ("B", 1), ("C", 2), ("D", 3)),
        max_length=512,
        prepare=split_question,
        official=official.RACE,
    ),
    Task(
        "agnews",
        "choices",
        news((" World", " Sports", " Business", " Tech"), " News:"),
        labels=numbered(1, 4),
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        official=official.AGNEWS,
    ),
    Task(
        "yahoo",
        "choices",
        news(
            (
                " Society",
                " Science",
                " Health",
                " Education",
                " Computer",
                " Sports",
                " Business",
                " Entertainment",
                " Relationship",
                " Politics",
            ),
            " Question:",
        ),
        labels=numbered(1, 10),
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        official=official.YAHOO,
    ),
    Task(
        "yelp-polarity",
        "choices",
        review((" bad", " good")),
        labels=numbered(1, 2),
        one_token=True,
        max_length=256,
        pooled=ONE_TEXT,
        official=official.YELP,
    ),
    Task(
        "yelp-full",
        "choices",
        review((" terrible", " bad", " okay", " good", " great")),
        labels=numbered(1, 5),
        one_token=True,
        max_length=256,
        pooled=ONE_TEXT,
        official=official.YELP,
    ),
    *(
        Task(
            name,
            "choices",
            MNLI,
            labels=(("contradiction", 2), ("entailment", 0), ("neutral", 1)),
            one_token=True,
            max_length=256,
            pooled=TWO_TEXTS,
            official=data,
        )
        for name, data in (("mnli", official.MNLI), ("mnli-mm", official.MNLI_MISMATCHED))
    ),
    Task(
        "qnli",
        "choices",
        QNLI,
        labels=ENTAILS,
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        official=official.QNLI,
    ),
    Task(
        "sst2",
        "choices",
        SST2,
        labels=numbered(0, 2),
        one_token=True,
        max_length=256,
        pooled=ONE_TEXT,
        official=official.SST2,
    ),
    Task(
        "cola",
        "choices",
        (COLA,),
        labels=numbered(0, 2),
        one_token=True,
        max_length=256,
        pooled=ONE_TEXT,
        official=official.COLA,
    ),
    *(
        Task(
            name,
            "choices",
            patterns,
            labels=numbered(0, 2),
            one_token=True,
            max_length=256,
            pooled=TWO_TEXTS,
            official=data,
        )
        for name, patterns, data in (("mrpc", MRPC, official.MRPC), ("qqp", QQP, official.QQP))
    ),
    Task(
        "tnews",
        "choices",
        (TNEWS,),
        labels=tuple((label, number) for number, label in enumerate(TNEWS_LABELS)),
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        settings=settings("task_tnews", epochs=10),
        official=official.TNEWS,
    ),
    Task(
        "afqmc",
        "choices",
        AFQMC,
        labels=numbered(0, 2),
        one_token=True,
        max_length=256,
        pooled=TWO_TEXTS,
        settings=settings("task_afqmc", epochs=10),
        official=official.AFQMC,
    ),
    Task(
        "cluewsc",
        "choices",
        CLUEWSC,
        labels=(("false", False), ("true", True)),
        one_token=True,
        max_length=256,
        prepare=mark_spans,
        pooled=Pattern(["{text_a}", SEPARATOR, "{span1_text}"]),
        settings=settings("task_cluewsc", epochs=10),
        official=official.CLUEWSC,
    ),
)

# --- Answers --------------------------------------------------------------------------------------


def summarisation(
    name: str,
    limits: tuple[int, int],
    data: Official,
    settings: Settings,
) -> Task:
    """The blank stands in front of what is to be summed up."""
    return Task(
        name,
        "answers",
        (Pattern([SENTENCE, " Content:", Cut(" {source}")], [" {target}"]),),
        max_length=limits[0],
        max_target_length=limits[1],
        eos=False,
        metrics=("rouge1", "rouge2", "rougeL"),
        official=data,
        settings=settings,
    )


def question_answering(
    name: str,
    epochs: int,
    data: Official,
    slices: Callable[..., list[Example]],
) -> Task:
    return Task(
        name,
        "answers",
        (
            Pattern(
                [" {question:strip}", SENTENCE, ".", Cut(" {source:right_strip}")],
                [" {answer:strip}"],
            ),
        ),
        max_length=512,
        max_target_length=64,
        eos=False,
        references="answers",
        group="idx",
        metrics=("token_f1", "normalized_match"),
        official=data,
        slices=slices,
        settings=writing(f"seq_{name}", epochs=epochs, batch_size=12, length_penalty=0.0),
    )


ANSWERS = named(
    summarisation(
        "gigaword",
        (192, 32),
        official.GIGAWORD,
        writing(
            "seq_gigaword",
            epochs=10,
            learning_rate=3e-5,
            length_penalty=0.6,
            no_repeat_ngram_size=3,
        ),
    ),
    summarisation(
        "cnn_dm",
        (608, 160),
        official.CNN_DM,
        writing(
            "seq_cnndm",
            epochs=15,
            learning_rate=3e-5,
            length_penalty=0.7,
            min_length=55,
            no_repeat_ngram_size=3,
        ),
    ),
    summarisation(
        "cnn_dm_original",
        (608, 160),
        official.CNN_DM_ORIGINAL,
        writing(
            "seq_cnndm_org",
            epochs=10,
            length_penalty=0.7,
            min_length=55,
            no_repeat_ngram_size=3,
        ),
    ),
    summarisation(
        "xsum",
        (608, 60),
        official.PAIRS,
        writing(
            "seq_xsum",
            epochs=6,
            num_beams=6,
            length_penalty=1.0,
            min_length=10,
            no_repeat_ngram_size=3,
        ),
    ),
    Task(
        "squad_generation",
        "answers",
        (
            Pattern(
                [
                    Cut("{source:right_strip} Question:", around=" {answer}"),
                    SENTENCE,
                    " Answer: {answer}",
                ],
                [" {question}"],
            ),
        ),
        max_length=464,
        max_target_length=48,
        eos=False,
        metrics=("bleu", "rougeL"),
        settings=writing(
            "seq_squad_generation",
            epochs=10,
            learning_rate=2e-5,
            length_penalty=0.7,
        ),
        official=official.SQUAD_GENERATION,
    ),
    question_answering("squad", 10, official.SQUAD, slice_documents),
    question_answering("squad_v1", 5, official.SQUAD_V1, slice_answered),
    Task(
        "cmrc",
        "answers",
        (
            Pattern(
                ["问题：{question:strip}答案：", MASK, Cut("{source:right_strip}")],
                [" {answer:strip}"],
            ),
        ),
        max_length=464,
        max_target_length=48,
        eos=False,
        references="answers",
        metrics=("exact_match", "token_f1"),
        settings=writing(
            "seq_cmrc",
            epochs=10,
            learning_rate=2e-5,
            batch_size=8,
            length_penalty=0.7,
        ),
        expand=one_per_answer,
        official=official.CMRC,
    ),
    Task(
        "customization",
        "answers",
        (Pattern([Cut("{source}", keep="end"), SENTENCE], [" {target}"]),),
        max_length=512,
        max_target_length=128,
        metrics=("rouge1", "rouge2", "rougeL", "bleu"),
        settings=writing(
            "seq_customization",
            epochs=10,
            weight_decay=0.01,  # the original's default, which the script leaves
            length_penalty=0.7,
            min_length=55,
            no_repeat_ngram_size=3,
        ),
        official=official.PAIRS,
    ),
    Task(
        "blank",
        "answers",
        (Pattern([Cut(" {source}")], [" {answers}"]),),
        max_length=256,
        max_target_length=200,
        cls=False,
        eos=False,
        metrics=("bleu",),
        settings=writing("seq_blank", epochs=5, num_beams=1, no_repeat_ngram_size=3),
        expand=mask_at_random,
        official=official.BLANK,
    ),
    Task(
        "extraction",
        "answers",
        (Pattern([Cut("{source}")], [" {target:split}"]),),
        max_length=256,
        max_target_length=200,
        cls=False,
        eos=False,
        metrics=("exact_match", "token_f1"),
        settings=writing("seq_blank", epochs=5, num_beams=1),
        official=official.PAIRS,
    ),
    Task(
        "wsc_generative",
        "answers",
        pronoun(" {span1_text}"),
        max_length=128,
        prepare=mark_pronoun,
        expand=wsc_positives,
        settings=settings("task_wsc_generative", epochs=50),
        official=official.WSC,
    ),
)

TASKS: dict[str, Task] = CHOICES | ANSWERS
