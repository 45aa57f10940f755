"""Video files in which coloured things appear, move and disappear at known times, at true film and variable rates.

Captions from a sentence to a line for each event, and questions for the time of an event. Times are written as the
stamps of the same sample are under ``timestamps: mixed``: which of the two forms follows from the sample's key.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from megatron_qwen3vl.data.timestamps import choose_style, stamp
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.record import Part, Record, conversation, document, text
from megatron_qwen3vl.recipes.scenes import COLOURS, pick, thing_mask
from megatron_qwen3vl.recipes.shapes import paint
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "video_events"
VARIABLE = "variable"
SHAPES = ("square", "circle", "triangle", "cross", "diamond")
DIRECTIONS = {"left": -1, "right": 1}
UNEVEN_MS = (20, 80)  # between frames of a variable rate
TASKS = ("short", "dense", "move", "seen", "first")
_MILLISECOND = Fraction(1, 1000)
_X264 = {"preset": "veryfast", "crf": "16", "threads": "1", "bf": "2", "g": "50"}


@dataclass(frozen=True)
class VideoEventSettings:
    canvas: tuple[int, int]  # width, height in pixels; each thing has a row of its own
    seconds: tuple[float, float]  # shortest and longest video
    rates: tuple[str, ...]  # frames a second as fractions, or ``variable``; one is drawn for each video
    things: tuple[int, int]
    tasks: Mapping[str, float]  # shares of TASKS; they need not add up to one
    turns: int  # most questions about one video

    def __post_init__(self) -> None:
        problems = [f"settings.tasks.{name}: unknown; there are {', '.join(TASKS)}"
                    for name in self.tasks if name not in TASKS]  # fmt: skip
        for rate in self.rates:
            try:
                good = rate == VARIABLE or Fraction(rate) > 0
            except (ValueError, ZeroDivisionError):
                good = False
            if not good:
                problems.append(f"settings.rates: {rate} is neither a rate such as 30000/1001 nor {VARIABLE}")
        if self.things[1] > len(COLOURS):
            problems.append(f"settings.things: at most {len(COLOURS)}, each has a colour of its own")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Actor:
    """Numbers of frames: ``first`` and ``gone`` bound where it is seen, ``start`` and ``stop`` where it moves."""

    colour: str
    shape: str
    direction: str
    first: int
    start: int
    stop: int
    gone: int
    row: int
    left: int  # where it begins
    way: int  # pixels that it moves

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def place(self, frame: int) -> int:
        part = min(max((frame - self.start) / (self.stop - self.start), 0.0), 1.0)
        return self.left + round(DIRECTIONS[self.direction] * self.way * part)


@dataclass(frozen=True)
class Clip:
    """``times``: seconds of every frame. ``rate`` is None where they are uneven."""

    times: tuple[float, ...]
    rate: Fraction | None
    actors: tuple[Actor, ...]
    size: int  # pixels of a thing

    def events(self) -> list[tuple[float, str]]:
        """(seconds, what happens), in order."""
        found: list[tuple[float, str]] = []
        for actor in self.actors:
            if actor.first:
                found.append((self.times[actor.first], f"The {actor.name} appears."))
            found.append((self.times[actor.start], f"The {actor.name} starts to move to the {actor.direction}."))
            found.append((self.times[actor.stop], f"The {actor.name} stops."))
            if actor.gone < len(self.times):
                found.append((self.times[actor.gone], f"The {actor.name} disappears."))
        return sorted(found)


def draw_clip(rng: np.random.Generator, settings: VideoEventSettings) -> Clip:
    seconds = rng.uniform(*settings.seconds)
    rate = pick(rng, settings.rates)
    if rate == VARIABLE:
        steps = rng.integers(UNEVEN_MS[0], UNEVEN_MS[1] + 1, int(seconds * 1000 / UNEVEN_MS[0]))
        milliseconds = np.concatenate([[0], np.cumsum(steps)])
        times = tuple((milliseconds[milliseconds <= seconds * 1000] / 1000).tolist())
        constant = None
    else:
        constant = Fraction(rate)
        times = tuple(float(number / constant) for number in range(int(seconds * constant)))
    count = int(rng.integers(settings.things[0], settings.things[1] + 1))
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    height = settings.canvas[1] // count
    size = min(height - 6, settings.canvas[0] // 4)
    rows = [number * height + (height - size) // 2 for number in range(count)]
    actors = tuple(_draw_actor(rng, settings, len(times), size, c, row) for c, row in zip(colours, rows, strict=True))
    return Clip(times, constant, actors, size)


def _draw_actor(
    rng: np.random.Generator, settings: VideoEventSettings, frames: int, size: int, colour: str, row: int
) -> Actor:
    first = 0 if rng.random() < 0.4 else int(frames * rng.uniform(0.08, 0.3))
    gone = frames if rng.random() < 0.4 else int(frames * rng.uniform(0.85, 0.95))
    room = settings.canvas[0] - size
    way = int(rng.integers(room // 2, room - 3))
    direction = pick(rng, list(DIRECTIONS))
    left = int(rng.integers(0, room - way)) + (way if direction == "left" else 0)
    return Actor(colour, pick(rng, SHAPES), direction, first, int(frames * rng.uniform(0.35, 0.5)),
                 int(frames * rng.uniform(0.6, 0.8)), gone, row, left, way)  # fmt: skip


def film(clip: Clip, canvas: tuple[int, int], grey: int) -> bytes:
    """An MP4 file whose frames are shown at exactly ``clip.times`` (rounded to the container's ticks)."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clip.rate or 25)
        stream.width, stream.height, stream.pix_fmt, stream.options = *canvas, "yuv420p", dict(_X264)
        if clip.rate is None:
            stream.codec_context.time_base = _MILLISECOND
        masks = {actor: thing_mask(actor.shape, clip.size) for actor in clip.actors}
        for number, seconds in enumerate(clip.times):
            pixels = np.full((canvas[1], canvas[0], 3), grey, np.uint8)
            for actor in clip.actors:
                if actor.first <= number < actor.gone:
                    paint(pixels, masks[actor], actor.place(number), actor.row, COLOURS[actor.colour])
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if clip.rate is None:
                frame.pts, frame.time_base = round(seconds * 1000), _MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _short(clip: Clip) -> str:
    told = []
    for actor in clip.actors:
        verbs = ["appears"] * bool(actor.first) + [f"moves to the {actor.direction}"]
        verbs += ["disappears"] * (actor.gone < len(clip.times))
        article = "An" if actor.name[0] in "aeiou" else "A"
        told.append(f"{article} {actor.name} {_listed(verbs)}.")
    return " ".join(told)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _dense(clip: Clip, style: str) -> str:
    return "\n".join(f"{stamp(seconds, style)} {event}" for seconds, event in clip.events())


def _asked(rng: np.random.Generator, clip: Clip, task: str, style: str) -> tuple[str, str]:
    actor = pick(rng, clip.actors)
    if task == "short":
        return "Describe the video in short.", _short(clip)
    if task == "dense":
        return "Describe every event of the video with its time.", _dense(clip, style)
    if task == "move":
        start, stop = (stamp(clip.times[frame], style) for frame in (actor.start, actor.stop))
        return f"When does the {actor.name} move?", f"From {start} to {stop}."
    if task == "seen":
        end = "the end" if actor.gone == len(clip.times) else stamp(clip.times[actor.gone], style)
        return f"During which time is the {actor.name} seen?", f"From {stamp(clip.times[actor.first], style)} to {end}."
    first = min(clip.actors, key=lambda a: a.start)
    return "What moves first, and when?", f"The {first.name}, from {stamp(clip.times[first.start], style)}."


def build(settings: VideoEventSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    names, shares = list(settings.tasks), np.array(list(settings.tasks.values()), float)
    part: Part = {"type": "video", "video": "0.mp4"}
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        clip = draw_clip(rng, settings)
        starts = sorted(actor.start for actor in clip.actors)
        while not belongs(str(clip.actors), held_out) or (len(starts) > 1 and starts[1] - starts[0] < 3):
            clip = draw_clip(rng, settings)
            starts = sorted(actor.start for actor in clip.actors)
        key = f"{number:06d}"
        style = choose_style("mixed", key)
        tasks = [names[int(rng.choice(len(names), p=shares / shares.sum()))] for _ in range(settings.turns)]
        if tasks[0] in ("short", "dense") and rng.random() < 0.5:
            told = _short(clip) if tasks[0] == "short" else _dense(clip, style)
            body = document([part, text(told)], DOMAIN)
        else:
            asked = dict(_asked(rng, clip, task, style) for task in tasks[: int(rng.integers(1, settings.turns + 1))])
            turns: list[tuple[list[Part], str]] = [([text(question)], answer) for question, answer in asked.items()]
            turns[0] = ([part, *turns[0][0]], turns[0][1])
            body = conversation(turns, DOMAIN)
        yield Record(key, body, {"0.mp4": film(clip, settings.canvas, int(rng.integers(40, 200)))})
