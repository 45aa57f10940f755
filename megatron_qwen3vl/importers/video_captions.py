"""Videos with captions for times, as ActivityNet Captions has them: ``{ID: {"duration", "timestamps", "sentences"}}``.

A sample asks for the times of some events, and then for a description with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3vl.data.limits import VIDEO_EXTENSIONS
from megatron_qwen3vl.data.timestamps import choose_style, stamp
from megatron_qwen3vl.data.video import probe
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.choosing import Chooser
from megatron_qwen3vl.importers.files import read_beside, sample
from megatron_qwen3vl.importers.frame import Entry, Format, Made, clean_key, needs, option, required
from megatron_qwen3vl.recipes.record import Part, conversation, document, text

DENSE, GROUNDING = "dense", "grounding"
STYLES = ("mixed", "seconds", "clock")
DESCRIBE = "Describe every event of the video with its time."  # as recipes.video_events
QUESTIONS = (
    "During which time does this happen? {}",
    "When does the following happen in the video? {}",
    "Give the start and the end of this event: {}",
)
FIELDS = ("timestamps", "sentences")
_LATE_S = 0.5  # an annotation may end so much behind the last frame without being cut


@dataclass(frozen=True)
class VideoCaptionSettings:
    videos: str = required("folder of the videos, ID.mp4 and so on")
    tasks: tuple[str, ...] = option((GROUNDING, DENSE), f"{GROUNDING} (questions for times), {DENSE}, or both")
    questions: int = option(3, "most questions for the time of an event in a sample")
    timestamps: str = option("mixed", "how times are written; must be the mixture's `timestamps`")
    max_bytes: int = option(1_000_000_000, "leave out larger video files; one at a time is in memory")
    domain: str = option("video_events", "the samples' domain")

    def __post_init__(self) -> None:
        problems = []
        if not Path(self.videos).is_dir():
            problems.append(f"videos: {self.videos} is not a folder")
        if not self.tasks or set(self.tasks) - {DENSE, GROUNDING}:
            problems.append(f"tasks: {','.join(self.tasks)} are not {GROUNDING}, {DENSE} or both")
        if self.timestamps not in STYLES:
            problems.append(f"timestamps: {self.timestamps} is not one of {', '.join(STYLES)}")
        if self.questions < 1:
            problems.append(f"questions: {self.questions} must be at least 1")
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Event:
    """Seconds, and what happens."""

    start: float
    end: float
    words: str


def read(source: Path, settings: VideoCaptionSettings) -> Iterator[Entry]:
    needs("ijson", "this format")
    import ijson

    size = max(source.stat().st_size, 1)
    count = 0
    try:
        with open(source, "rb") as file:
            for name, row in ijson.kvitems(file, "", use_float=True):
                if not count:
                    _check(source, name, row)
                count += 1
                key = clean_key(name)
                yield Entry(key, partial(_make, key, name, row, settings), part=file.tell() / size)
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"data import: {source} is not JSON: {' '.join(str(error).split()):.200}") from None
    if not count:
        raise UserError(f"data import: {source} is not an object that has a video's ID for each name, or it is empty")


def _check(source: Path, name: str, row: Any) -> None:
    missing = [field for field in FIELDS if not isinstance(row, Mapping) or not isinstance(row.get(field), list)]
    if missing:
        raise UserError(
            [f"data import: {source}: {name:.80} has no list '{field}'; each video has 'duration', 'timestamps' "
             "and 'sentences'" for field in missing]
        )  # fmt: skip


def _make(key: str, name: str, row: Any, settings: VideoCaptionSettings) -> Made:
    events = _events(row)
    ending, data = _video(Path(settings.videos), name, settings.max_bytes)
    facts = probe(data)
    last = float(int(facts.ticks[-1]) * facts.time_base)
    inside, notes = _inside(events, last)
    if not inside:
        raise BadSample(f"no event of {len(events)} lies inside the video, which ends at {last:.1f} s")
    style = choose_style(settings.timestamps, key)
    chooser = Chooser(key)
    member = f"0.{ending}"
    part: Part = {"type": "video", "video": member}
    told = "\n".join(f"{_span(event, style)}: {event.words}" for event in inside)
    asked: list[tuple[str, str]] = []
    if GROUNDING in settings.tasks:
        names = [event.words.casefold() for event in inside]
        unique = [event for event in inside if names.count(event.words.casefold()) == 1]
        for event in chooser.some(unique, settings.questions):
            asked.append((chooser.pick(QUESTIONS).format(event.words), f"{_span(event, style)}."))
    if DENSE in settings.tasks:
        if not asked and chooser.number(2):
            return sample(document([part, text(told)], settings.domain), {member: data}, notes)
        asked.append((DESCRIBE, told))  # last: it holds the answers
    if not asked:
        raise BadSample("every event is there twice, so that none has one time")
    turns: list[tuple[Sequence[Part], str]] = [([text(question)], answer) for question, answer in asked]
    turns[0] = ([part, *turns[0][0]], turns[0][1])
    return sample(conversation(turns, settings.domain), {member: data}, notes)


def _span(event: Event, style: str) -> str:
    return f"From {stamp(event.start, style)} to {stamp(event.end, style)}"


def _events(row: Any) -> list[Event]:
    times, sentences = ((row.get(field) if isinstance(row, Mapping) else None) for field in FIELDS)
    if not isinstance(times, list) or not isinstance(sentences, list) or len(times) != len(sentences) or not times:
        raise BadSample("'timestamps' and 'sentences' are not two lists of one length")
    events = []
    for number, (pair, words) in enumerate(zip(times, sentences, strict=True)):
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_time(time) for time in pair):
            raise BadSample(f"timestamps[{number}] is not [start, end] in seconds")
        if not isinstance(words, str):
            raise BadSample(f"sentences[{number}] is not a text")
        events.append(Event(float(min(pair)), float(max(pair)), " ".join(words.split())))
    return sorted(events, key=lambda event: (event.start, event.end))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e7


def _inside(events: Sequence[Event], last: float) -> tuple[list[Event], list[str]]:
    """Events cut at the end of the video; those that begin behind it, and those without words, go."""
    kept, notes = [], []
    for event in events:
        if event.start >= last or not event.words:
            notes.append(f"event {event.start:.1f} to {event.end:.1f} s left out: {event.words:.80}")
            continue
        kept.append(Event(event.start, event.end if event.end <= last + _LATE_S else last, event.words))
    return kept, notes


def _video(folder: Path, name: str, most: int) -> tuple[str, bytes]:
    """Its ending and its bytes. ActivityNet's IDs begin with ``v_``, which not every copy of the files has."""
    names = [name, name.removeprefix("v_")]
    for stem in names:
        for ending in VIDEO_EXTENSIONS:
            if "/" not in stem and "\0" not in stem and (folder / f"{stem}.{ending}").is_file():
                return ending, read_beside(folder, f"{stem}.{ending}", most)
    raise BadSample(f"{name}: there is no such video in {folder}")


ACTIVITYNET = Format(
    "activitynet",
    "videos with captions for times (ActivityNet Captions)",
    "a .json file, {ID: {duration, timestamps: [[start, end], ...], sentences: [...]}}",
    VideoCaptionSettings,
    read,
)
