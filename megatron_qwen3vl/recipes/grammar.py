"""The sentences of the built-in data set. Every builder says what it drew through these, and tests read them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (20, 190, 40),
    "blue": (40, 60, 240),
    "yellow": (250, 225, 20),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
SHAPES = ("square", "circle", "triangle", "cross")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

READ_DIGITS = "Read the digits."
DESCRIBE = "What is in the picture?"
DESCRIBE_VIDEO = "What happens in the video?"


def place(row: int, column: int) -> str:
    """Names a cell of the 3 x 3 grid over a picture: ``at the top left``."""
    return f"at the {ROWS[row]} {COLUMNS[column]}"


def digits_sentence(digits: str) -> str:
    return f"The digits are {digits}."


def thing(name: str, row: int, column: int) -> str:
    """``name`` is ``red square`` or ``digit 7``."""
    return f"a {name} {place(row, column)}"


def scene_sentence(things: Sequence[str], subject: str) -> str:
    """One sentence about a picture of ``subject`` (a photograph's name) and the things drawn into it, in order."""
    return f"A picture of {subject} with {' and '.join(things)}."


def appears_sentence(name: str, seconds: float) -> str:
    return f"The {name} appears at {seconds:.1f} seconds."


def moves_sentence(name: str, direction: str) -> str:
    return f"The {name} moves {direction}."


def corpus(subjects: Sequence[str]) -> Iterator[str]:
    """Every phrase of the grammar at least once: what the tokenizer is trained on beside English text."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES] + [f"digit {d}" for d in range(10)]
    for index, name in enumerate(names):
        for cell in range(9):
            subject = subjects[(index + cell) % len(subjects)]
            other = names[(index * 7 + cell) % len(names)]
            things = [thing(name, cell // 3, cell % 3), thing(other, cell % 3, cell // 3)]
            yield scene_sentence(things, subject)
            yield f"Locate the {name}, output its bbox in JSON.\nPoint to the {name}, output its point in JSON."
            yield f'assistant\n{name}\nuser\nWhat is it?\nWhat is at the point [0, 0]?\nRead the number.'
            yield 'How many things are there?\n{"bbox_2d": [0, 0, 0, 0]}\n{"point_2d": [0, 0]}'
        for direction in DIRECTIONS:
            yield f"{appears_sentence(name, 2.0)} {moves_sentence(name, direction)}"
        yield f"user\n{READ_DIGITS}\nassistant\n{digits_sentence('123')}\nuser\n{DESCRIBE}\n" + (
            f"assistant\n{DESCRIBE_VIDEO}\n"
        )
        yield "<3.0 seconds><00:00:03>"
