"""A page on which people fill blanks.

`glm app` shows it. The same file is the `app.py` of a repository that was written with `--space`:
there it finds the other files beside it, and nothing of the package.

Shapes: N tokens of a text and its answers, the last of which is written and never read; T = N - 1.
"""

import html
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from tokenizers import pre_tokenizers

if TYPE_CHECKING or __package__:
    from ..blanks_glm import BlankLayout, position_scheme, sees
else:  # in a Space
    from blanks_glm import BlankLayout, position_scheme, sees

MOST_CHARACTERS = 20_000  # of a text: more than the longest context of any model holds
MOST_WAITING = 64  # people, before others are told to come back
MOST_DRAWN = 128  # tokens of the picture: more can neither be read nor quickly be drawn
LIKELIEST, DRAWN = "The likeliest", "Drawn by chance"

MASKS = {
    "[MASK]": "a few words",
    "[sMASK]": "a sentence",
    "[gMASK]": "all that follows, at the end of a text",
}
EXAMPLES = {
    "en": {
        "[MASK]": [
            "The capital of Spain is [MASK].",
            "Rome is the capital of [MASK] and a dog has [MASK] legs.",
        ],
        "[sMASK]": ["What is a young cow called? [sMASK]"],
        "[gMASK]": ["The opposite of hot is [gMASK]"],
    },
    "zh": {
        "[MASK]": ["西班牙的首都是[MASK]。", "罗马是[MASK]的首都，狗有[MASK]条腿。"],
        "[sMASK]": ["清华大学位于北京。[sMASK]欢迎大家报考。"],
        "[gMASK]": ["清华大学位于[gMASK]"],
    },
}

# Of the context, then of the blanks in turn: the palette of Okabe and Ito, as in `glm preview`.
COLORS = ["#9aa5b1", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
CSS = """
.glm-answers { border: 0 !important; width: 100%; border-collapse: collapse; margin-bottom: 1em; }
.glm-answers caption { text-align: left; font-weight: 600; border-bottom: 2px solid; }
.glm-answers tr, .glm-answers td { border: 0 !important; }
.glm-answers td { padding: 0.15em 0.4em; vertical-align: middle; }
.glm-answers td:first-child { width: 50%; white-space: pre-wrap; overflow-wrap: anywhere; }
.glm-answers td:last-child { width: 4.5em; text-align: right; white-space: nowrap; }
.glm-answers .bar { height: 0.8em; min-width: 1px; border-radius: 2px; }
.glm-reading { overflow-x: auto; }
.glm-reading svg { font: 12px ui-monospace, monospace; fill: currentColor; }
.glm-reading path { stroke: var(--block-background-fill, white); }
.glm-problem { padding: 0.6em 0.8em; border-left: 4px solid #d55e00; }
"""
READING = """
Each row is a token that GLM reads. **position** is its place in the text; the tokens of an answer
all have that of their blank. **in answer** counts the tokens of an answer, and is 0 in the text.
The filled cells of a row are the tokens that it sees: all see the whole text, what is before them
and what is behind, and an answer also what was written before. **writes** is what GLM writes when
it has read that far.
"""


# --- What is shown --------------------------------------------------------------------------------


def color(blank: int) -> str:
    """Of the blank with this number, from 1; 0 is the context."""
    return COLORS[1 + (blank - 1) % (len(COLORS) - 1)] if blank else COLORS[0]


def highlighted(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, str | None]]:
    """The text in parts, each answer with the name of its blank."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for blank, (start, stop) in enumerate(spans, start=1):
        parts += [(text[end:start], None), (text[start:stop], f"blank {blank}")]
        end = stop
    parts.append((text[end:], None))
    return [part for part in parts if part[0]]


def answers_table(alternatives: list[list[dict]]) -> str:
    """HTML of the answers of each blank, with bars as long as they are probable."""
    tables = []
    for blank, of_blank in enumerate(alternatives, start=1):
        rows = [
            f'<tr><td dir="auto">{html.escape(entry["answer"]) or "<i>nothing</i>"}</td>'
            f'<td><div class="bar" style="width: {entry["probability"]:.1%}; '
            f'background: {color(blank)}"></div></td><td>{percent(entry["probability"])}</td></tr>'
            for entry in of_blank
        ]
        caption = f'<caption style="border-color: {color(blank)}">Blank {blank}</caption>'
        tables.append(f'<table class="glm-answers">{caption}{"".join(rows)}</table>')
    return "".join(tables)


def percent(probability: float) -> str:
    """Of a long answer, whose words are many, each is small."""
    return f"{probability:.1%}" if probability >= 0.001 else "&lt; 0.1%"


def empty_ones(answers: list[str]) -> str:
    """HTML that says which blanks have no answer, which cannot be seen in the text."""
    empty = [f"blank {blank}" for blank, answer in enumerate(answers, start=1) if not answer]
    return note(f"The model writes nothing for {', '.join(empty)}.") if empty else ""


def note(sentence: str) -> str:
    return f'<p class="glm-problem" role="alert">{html.escape(sentence)}</p>'


@dataclass
class Reading:
    """How the network reads a text and its answers.

    Attributes:
        tokens (T,): what it reads.
        written (T,): what it writes then; nothing in the context.
        positions: the names of the rows of its positions, each with (T,).
        blanks (T,): k for the k-th mask and the tokens of its answer, 0 for the rest.
        sees (T, T): whether the token of the row sees that of the column.
    """

    tokens: list[str]
    written: list[str]
    positions: dict[str, list[int]]
    blanks: list[int]
    sees: list[list[bool]]

    @classmethod
    def of(cls, ids: torch.Tensor, tokenizer, config, max_piece_length: int) -> "Reading":
        """Of ids (1, N): a context, and its pieces as `generate` returns them."""
        layout = BlankLayout.of(ids, config, generated=True)
        length = ids.shape[1]
        positions = position_scheme(config).position_ids(
            layout,
            torch.arange(length)[None],
            length,
            max_piece_length,
        )  # (1, 2, N), or (1, N) without block positions
        names = ("position", "in answer") if positions.dim() == 3 else ("position",)
        in_context = layout.in_context[0]  # (N,)
        number = torch.where(in_context, layout.is_mask[0].cumsum(0), layout.pieces(length)[0] + 1)
        blanks = torch.where(in_context & ~layout.is_mask[0], 0, number)
        texts = [tokenizer.token_text(id) for id in ids[0].tolist()]
        read = [tokenizer.token_text(id) for id in layout.read(ids, config)[0].tolist()]
        return cls(
            tokens=read[:-1],
            written=[
                "" if inside else text
                for inside, text in zip(in_context[:-1].tolist(), texts[1:], strict=True)
            ],
            positions={
                name: row.tolist()
                for name, row in zip(names, positions.view(-1, length)[:, :-1], strict=True)
            },
            blanks=blanks[:-1].tolist(),
            sees=sees(layout.in_context)[0, :-1, :-1].tolist(),
        )


# The picture, in pixels: of a cell, a column of tokens, one of numbers, the tokens on top.
CELL, TOKENS, NUMBERS, TOP = 18, 130, 78, 130


def picture(reading: Reading) -> str:
    """HTML with a row for each token: its positions, whom it sees, what it writes."""
    size = len(reading.tokens)
    if size > MOST_DRAWN:
        return f"<p>GLM reads {size} tokens here; up to {MOST_DRAWN} are drawn.</p>"
    left = TOKENS + NUMBERS * len(reading.positions)
    right = left + CELL * size
    columns = {TOKENS: ("reads", reading.tokens)}
    for number, (name, values) in enumerate(reading.positions.items(), start=1):
        columns[TOKENS + NUMBERS * number] = (name, [*map(str, values)])
    drawn = []
    for x, (name, texts) in columns.items():
        for row, text in enumerate([name, *texts]):
            drawn.append(svg_text(x - 8, TOP + CELL * row - 5, text, 'text-anchor="end"'))
    for row, text in enumerate(["writes", *reading.written]):
        drawn.append(svg_text(right + 8, TOP + CELL * row - 5, text))
    for column, token in enumerate(reading.tokens):
        middle = left + CELL * column + CELL // 2 + 4
        upwards = f'transform="rotate(-90 {middle} {TOP - 6})"'
        drawn.append(svg_text(middle, TOP - 6, token, upwards))
    side = CELL * size
    drawn.append(f'<rect x="{left}" y="{TOP}" width="{side}" height="{side}" opacity="0.06"/>')
    for row, seen in enumerate(reading.sees):
        drawn += filled_cells(left, TOP + CELL * row, seen, reading.blanks)
    lines = range(0, side + 1, CELL)
    down = "".join(f"M{left + line} {TOP}v{side}" for line in lines)
    across = "".join(f"M{left} {TOP + line}h{side}" for line in lines)
    return (
        f'<div class="glm-reading"><svg role="img" width="{right + TOKENS}" height="{TOP + side}">'
        f'<title>Who sees whom</title>{"".join(drawn)}<path d="{down}{across}"/></svg></div>'
    )


def svg_text(x: int, y: int, text: str, how: str = "") -> str:
    return f'<text x="{x}" y="{y}" {how}>{html.escape(shortened(text))}</text>'


def filled_cells(left: int, y: int, seen: list[bool], blanks: list[int]) -> list[str]:
    """A row of the picture: a rectangle for neighbours of one colour."""
    fills = [color(blank) if sees else None for sees, blank in zip(seen, blanks, strict=True)]
    drawn, column = [], 0
    for fill, run in groupby(fills):
        length = len([*run])
        if fill is not None:
            place = f'x="{left + CELL * column}" y="{y}" width="{CELL * length}" height="{CELL}"'
            drawn.append(f'<rect {place} fill="{fill}"/>')
        column += length
    return drawn


def shortened(token: str, most: int = 16) -> str:
    return token if len(token) <= most else f"{token[: most - 1]}…"


# --- The page -------------------------------------------------------------------------------------


def fill(
    pipeline,
    text: str,
    way: str = LIKELIEST,
    alternatives: int = 5,
    temperature: float = 1.0,
    shortest: int = 0,
    longest: int = 32,
    allowed: str = "",
    forbidden: str = "",
) -> tuple[list[tuple[str, str | None]], str, str]:
    """What the page shows of a text: its parts, the table of answers, the picture.

    Args:
        allowed, forbidden: answers, and words, with commas between them.

    Raises:
        ValueError: a sentence for the person who wrote the text.
    """
    longest_text = max(len(text), len(allowed), len(forbidden))
    if longest_text > MOST_CHARACTERS:  # programs can send more than the fields take
        raise ValueError(f"The text has {longest_text} characters; {MOST_CHARACTERS} are the most.")
    answers = listed(allowed)
    blanks = pipeline.count_blanks(text)
    steering: dict[str, Any] = dict(min_piece_length=shortest, max_piece_length=longest)
    if answers:
        steering["allowed_answers"] = [answers] * blanks
    pipeline.check_readable(text, **steering)
    ways: dict[str, Any] = {"alternatives": alternatives}
    if way == DRAWN:
        ways = {"do_sample": True, "temperature": float(temperature)}
    (result,) = pipeline(
        [text],
        return_tensors=True,
        max_new_tokens=blanks * (longest + 1),
        bad_words=listed(forbidden) or None,
        **steering,
        **ways,
    )
    prompt, tokenizer = pipeline.prompt(text), pipeline.tokenizer
    context = tokenizer(prompt, return_tensors="pt").input_ids  # (1, S)
    ids = torch.cat([context, result["generated_token_ids"].cpu()[None]], dim=1)  # (1, N)
    return (
        highlighted(result["filled_text"], tokenizer.answer_spans(prompt, result["blanks"])),
        answers_table(result.get("alternatives", [])) + empty_ones(result["blanks"]),
        picture(Reading.of(ids, tokenizer, pipeline.model.config, longest)),
    )


def listed(text: str) -> list[str]:
    """The parts of a text with commas, Chinese ones too."""
    parts = text.replace("，", ",").split(",")
    return [part.strip() for part in parts if part.strip()]


def examples(tokenizer) -> list[str]:
    """Some for each mask that the model knows, in its language."""
    is_chinese = isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.Metaspace)
    of_masks = EXAMPLES["zh" if is_chinese else "en"]
    return [text for mask in known_masks(tokenizer) for text in of_masks[mask]]


def known_masks(tokenizer) -> list[str]:
    return [mask for mask in MASKS if mask in tokenizer.masks]


def build(pipeline, name: str) -> gr.Blocks:
    """The page of a pipeline; `name` is its title."""

    def show(*values):
        try:
            return fill(pipeline, *values)
        except ValueError as error:
            return [], note(str(error)), ""

    known = known_masks(pipeline.tokenizer)
    masks = ", ".join(f"`{mask}` for {MASKS[mask]}" for mask in known)
    room = pipeline.model.config.max_sequence_length
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n\nWrite a text and leave out what is to be found: {masks}.")
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(
                    "",
                    label="Text with blanks",
                    info="Shift and Enter fill it, too.",
                    lines=4,
                    max_length=MOST_CHARACTERS,
                    autofocus=True,
                )
                button = gr.Button("Fill", variant="primary")
                with gr.Accordion("Settings", open=False):
                    settings = setting_fields(room)
            with gr.Column():
                filled = gr.HighlightedText(
                    label="Filled",
                    color_map={f"blank {blank}": color(blank) for blank in range(1, 100)},
                    show_inline_category=False,
                )
                table = gr.HTML(label="Answers", show_label=False)
        given = gr.Examples([[text] for text in examples(pipeline.tokenizer)], inputs=[text])
        with gr.Accordion("How GLM reads this", open=False):
            gr.Markdown(READING)
            drawing = gr.HTML()
        filling: dict[str, Any] = dict(
            fn=show,
            inputs=[text, *settings],
            outputs=[filled, table, drawing],
            concurrency_limit=1,  # the pipeline fills one text at a time
            concurrency_id="pipeline",
            trigger_mode="always_last",  # who asks again before the answer is there gets the last
        )
        gr.on([button.click, text.submit], api_name="fill", **filling)
        given.load_input_event.then(api_visibility="private", **filling)
    return page


def setting_fields(room: int) -> list[gr.components.Component]:
    """The arguments of `fill` behind the text; `room`: for how many tokens the model has place."""
    way = gr.Radio([LIKELIEST, DRAWN], value=LIKELIEST, label="Answers")
    alternatives = gr.Slider(1, 10, value=5, step=1, label="Answers for each blank")
    temperature = gr.Slider(
        0.1,
        2,
        value=1,
        label="Surprise",
        info="The temperature: low draws what is likely, high what is not.",
        visible=False,
    )
    way.change(
        lambda way: (gr.update(visible=way == LIKELIEST), gr.update(visible=way == DRAWN)),
        inputs=way,
        outputs=[alternatives, temperature],
        api_visibility="private",
    )
    most = min(256, room - 1)
    with gr.Row():
        shortest = gr.Slider(0, most, value=0, step=1, label="Shortest answer", info="In tokens.")
        longest = gr.Slider(
            1,
            most,
            value=min(32, most),
            step=1,
            label="Longest answer",
            info="In tokens.",
        )
    allowed = gr.Textbox("", label="Only these answers", placeholder="two, four")
    forbidden = gr.Textbox("", label="None of these words", placeholder="Paris, London")
    return [way, alternatives, temperature, shortest, longest, allowed, forbidden]


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> str:
    """Show a page, here alone and without a word to others; returns its address.

    Args:
        host, port: by default what Gradio's environment variables say, as in a Space.
    """
    _, address, _ = page.queue(max_size=MOST_WAITING).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        # Fonts that the reader's machine has.
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=CSS,
    )
    return address


if __name__ == "__main__":
    import os

    from transformers import pipeline as make_pipeline

    task: Any = "text2text-generation"  # the repository's own, which the library's types lack
    page = build(
        make_pipeline(task, model=str(Path(__file__).parent), trust_remote_code=True),
        os.environ.get("SPACE_ID", "GLM"),
    )
    launch(page)
    page.block_thread()
