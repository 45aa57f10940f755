"""Token ids and labels written out by hand from docs/data_format.md; timestamps against transformers' processor."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.data.compose import Record, compose
from megatron_qwen3vl.data.render import Tokens, render, video_stamps
from megatron_qwen3vl.data.timestamps import choose_style, frame_times
from megatron_qwen3vl.errors import BadSample
from tests.unit.data.shard_helpers import VISION, document, image_part, tokenizer, video_part

T = tokenizer()
NAMES = ("json", "0.jpg", "1.jpg", "2.jpg")


def rendered(data: bytes, *grids: tuple[int, int, int], style: str = "seconds") -> Tokens:
    return render(compose(Record(NAMES, {"json": data}), T), grids, style, T, VISION)


def check(tokens: Tokens, *pieces: tuple[list[int], bool]) -> None:
    """``pieces``: ids, and whether they are predicted."""
    ids = [i for piece, _ in pieces for i in piece]
    predicted = [loss for piece, loss in pieces for _ in piece]
    assert tokens.input_ids.tolist() == ids
    expected = [i if loss else IGNORE for i, loss in zip(ids[1:], predicted[1:], strict=True)] + [IGNORE]
    assert tokens.labels.tolist() == expected


def image_span(count: int) -> list[int]:
    return [T.vision_start, *[T.image_pad] * count, T.vision_end]


def video_span(count: int) -> list[int]:
    return [T.vision_start, *[T.video_pad] * count, T.vision_end]


def test_document() -> None:
    got = rendered(document("One ", image_part("0.jpg"), "two", "three"), (1, 4, 6))
    parts = [T.encode("One "), image_span(6), T.encode("two"), T.encode("three"), [T.endoftext]]
    check(got, *zip(parts, [True, False, True, True, True], strict=True))
    start = len(parts[0]) + 1
    assert got.visual_index.tolist() == list(range(start, start + 6))
    assert got.grids.tolist() == [[1, 4, 6]]


def test_text_parts_are_tokenised_on_their_own() -> None:
    assert T.encode("the") != T.encode("t") + T.encode("he"), "or this test shows nothing"
    assert rendered(document("t", "he")).input_ids.tolist() == [*T.encode("t"), *T.encode("he"), T.endoftext]


def test_first_token_is_never_predicted() -> None:
    got = rendered(document("x"))
    assert got.input_ids.tolist() == [*T.encode("x"), T.endoftext]
    assert got.labels.tolist() == [T.endoftext, IGNORE]


def test_conversation() -> None:
    answer = [{"type": "text", "text": "A "}, image_part("1.jpg"), {"type": "text", "text": "cat."}]
    data = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [image_part("0.jpg"), {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    got = rendered(json.dumps(data).encode(), (1, 2, 2), (1, 4, 4))

    def header(role: str) -> tuple[list[int], bool]:
        return [T.im_start, *T.encode(f"{role}\n")], False

    def closing(loss: bool) -> tuple[list[int], bool]:
        return [T.im_end, *T.encode("\n")], loss

    check(
        got,
        header("system"),
        (T.encode("Be brief."), False),
        closing(False),
        header("user"),
        (image_span(1), False),
        (T.encode("What?"), False),
        closing(False),
        header("assistant"),
        (T.encode("A "), True),
        (image_span(4), False),
        (T.encode("cat."), True),
        closing(True),
        header("user"),
        (T.encode("Sure?"), False),
        closing(False),
        header("assistant"),
        (T.encode("Yes."), True),
        closing(True),
    )


def test_video_of_three_frames() -> None:
    got = rendered(document(video_part("0.jpg", "1.jpg", "2.jpg"), "end"), (2, 4, 4))
    check(
        got,
        (T.encode("<0.2 seconds>"), False),  # (0 + 0.5) / 2, written with one decimal
        (video_span(4), False),
        (T.encode("<1.0 seconds>"), False),  # the last frame stands twice
        (video_span(4), False),
        (T.encode("end"), True),
        ([T.endoftext], True),
    )
    assert got.grids.tolist() == [[1, 4, 4], [1, 4, 4]]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 120))
def test_stamps_equal_transformers(frames: int, fps: float) -> None:
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    times = Qwen3VLProcessor._calculate_timestamps(None, list(range(frames)), fps, 2)
    assert video_stamps(frame_times(frames, fps), "seconds", VISION) == [f"<{time:.1f} seconds>" for time in times]


def test_clock_is_floored() -> None:
    assert video_stamps(frame_times(4, 0.0005), "clock", VISION) == ["<00:16:40>", "<01:23:20>"]
    assert video_stamps(frame_times(2, 0.2), "clock", VISION) == ["<00:00:02>"]  # 2.5 s


def test_mixed_style_is_the_same_in_every_process() -> None:
    keys = [f"{number:06d}" for number in range(64)]
    code = (
        "from megatron_qwen3vl.data.timestamps import choose_style\n"
        f"print(''.join(choose_style('mixed', key)[0] for key in {keys!r}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = "".join(choose_style("mixed", key)[0] for key in keys)
    assert here == other
    assert 16 <= here.count("s") <= 48
    assert choose_style("clock", "a") == "clock"


def test_caption_pair_and_text_alone() -> None:
    pair = compose(Record(("jpg", "txt"), {"txt": b" a dog\n"}), T)
    check(
        render(pair, [(1, 2, 4)], "seconds", T, VISION),
        (image_span(2), False),
        (T.encode(" a dog\n"), True),
        ([T.endoftext], True),
    )
    alone = compose(Record(("txt",), {"txt": b"words"}), T)
    check(render(alone, [], "seconds", T, VISION), (T.encode("words"), True), ([T.endoftext], True))
    facts = compose(Record(("jpg", "txt", "json"), {"txt": b"a dog", "json": b'{"width": 3}'}), T)
    assert len(facts.visuals) == 1, "img2dataset's KEY.json beside a pair is no sample of its own"


BAD = [
    (b"\xff{}", "not UTF-8"),
    (b"{", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[]", "a list, not an object"),
    (b"null", "null, not an object"),
    (b"{}", "missing member 'content' or 'messages'"),
    (b'{"content": [], "messages": []}', "both"),
    (b'{"content": []}', "no content"),
    (document(""), "no content"),
    (b'{"content": {"type": "text"}}', "an object, not a list"),
    (b'{"content": ["text"]}', r"content\[0\] is a text"),
    (b'{"content": [{"text": "x"}]}', "missing member 'type'"),
    (b'{"content": [{"type": "audio"}]}', "bad part type 'audio'"),
    (b'{"content": [{"type": ["text"]}]}', "bad part type"),
    (b'{"content": [{"type": "text"}]}', "missing member 'text'"),
    (b'{"content": [{"type": "text", "text": 5}]}', "'text' is a number"),
    (b'{"content": [{"type": "text", "text": "\\ud800"}]}', "Unicode"),
    (b'{"content": [{"type": "image", "image": "\\ud800"}]}', "missing media"),
    (document(image_part("9.jpg")), "missing media '9.jpg'"),
    (document({"type": "image", "image": None}), "'image' is null"),
    (document({"type": "video", "video": "8.mp4"}), "missing media '8.mp4'"),
    (document({"type": "video", "video": 1}), "'video' is a number"),
    (document({"type": "video"}), "missing member 'frames' or 'video'"),
    (document({**video_part("0.jpg"), "times": [0, 1]}), "'times' is not a list of seconds, one for each frame"),
    (document({**video_part("0.jpg"), "times": [-1]}), "'times' is out of range"),
    (document({**video_part("0.jpg", "1.jpg"), "times": [1, 1]}), "'times' does not ascend"),
    (document({"type": "video", "frames": []}), "'frames' is not a list of names"),
    (document({"type": "video", "frames": ["0.jpg"]}), "missing member 'fps'"),
    (document(video_part("0.jpg", fps=0)), "out of range"),
    (document(video_part("0.jpg", fps=float("nan"))), "out of range"),
    (document(video_part("0.jpg", fps=10**400)), "out of range"),
    (document(video_part("0.jpg", fps=True)), "'fps' is a boolean"),
    (document(video_part("8.jpg")), "missing media"),
    (document("x", domain=3), "'domain'"),
    (document("x", domain="\ud800"), "'domain'"),
    (b'{"messages": "hi"}', "'messages' is a text"),
    (b'{"messages": []}', "'messages' is empty"),
    (b'{"messages": [5]}', r"messages\[0\] is a number"),
    (b'{"messages": [{"content": "x"}]}', "missing member 'role'"),
    (b'{"messages": [{"role": "user"}]}', "missing member 'content'"),
    (b'{"messages": [{"role": "robot", "content": "x"}]}', "unknown role 'robot'"),
    (b'{"messages": [{"role": {}, "content": "x"}]}', "unknown role"),
    (b'{"messages": [{"role": "user", "content": 5}]}', "a number, not a list"),
    (b'{"messages": [{"role": "user", "content": []}]}', "no content"),
]


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_ill_formed_samples_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        rendered(data)


@pytest.mark.parametrize(
    ("names", "texts", "reason"),
    [
        (("jpg",), {}, "neither a .json nor a .txt"),
        (("txt",), {"txt": b"\xff"}, "not UTF-8"),
        (("txt",), {"txt": b""}, "no content"),
        (("jpg", "png", "txt"), {"txt": b"x"}, "more than one image"),
    ],
)
def test_ill_formed_captions_are_named(names: tuple[str, ...], texts: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        compose(Record(names, texts), T)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["text", "image", "video", "user", "0.jpg"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "video", "frames", "fps", "role", "content"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["content", "messages", "domain"]), json_values))
def test_hostile_json_never_crashes(tree: dict[str, object]) -> None:
    try:
        compose(Record(NAMES, {"json": json.dumps(tree).encode()}), T)
    except BadSample as bad:
        assert str(bad)


def test_lengths_are_of_whole_arrays() -> None:
    got = rendered(document("a b c", video_part("0.jpg", "1.jpg"), image_part("2.jpg")), (1, 4, 4), (1, 2, 6))
    n = len(got.input_ids)
    assert got.labels.shape == (n,) and got.positions.shape == (3, n)
    assert np.isin(got.input_ids, [T.image_pad, T.video_pad]).sum() == len(got.visual_index) == 7


@pytest.mark.parametrize("smuggled", [T.image_pad, T.video_pad])
def test_placeholders_in_text_are_refused(smuggled: int) -> None:
    """No tokenizer here gives such ids for a text; one that did would shift every visual feature behind it."""
    composition = compose(Record(NAMES, {"json": document("a", image_part("0.jpg"), "b")}), T)
    first, *rest = composition.pieces
    composition = replace(composition, pieces=(replace(first, ids=[*first.ids, smuggled]), *rest))
    with pytest.raises(BadSample, match="placeholder"):
        render(composition, [(1, 4, 6)], "seconds", T, VISION)
