"""The state of all lanes as JSON, and back: also when the mixture changed between two starts.

Sources are known by name. The waiting samples of a lane, walked from the newest to the oldest, are one number each,
(steps back from the turn before) x sources + source, 7 bits to a byte: one or two bytes a sample, at any position.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_qwen3vl.data.lanes import LaneState, Mixture, whole_shares
from megatron_qwen3vl.errors import UserError

VERSION = 1


def encode(mixture: Mixture, lanes: Sequence[LaneState]) -> dict[str, Any]:
    """JSON-able; a few hundred bytes a lane, independent of the position."""
    sources = [
        {
            "name": source.name,
            "weight": weight,
            "samples": len(source),
            "tokens": num_tokens,
            "slice": source.slice_size,
        }
        for source, weight, num_tokens in zip(mixture.sources, mixture.weights, mixture.num_tokens, strict=True)
    ]
    return {
        "version": VERSION,
        "seed": mixture.seed,
        "stage": mixture.stage,
        "sequence_length": mixture.sequence_length,
        "sources": sources,
        "lanes": [
            {"taken": list(lane.taken), "tokens": list(lane.tokens), "waiting": _pack_waiting(lane)} for lane in lanes
        ],
    }


def decode(state: Mapping[str, Any], mixture: Mixture) -> tuple[list[LaneState], list[str]]:
    """The lanes' states for this mixture, and a sentence for each thing that changed since the state was written.

    Raises UserError where going on has no meaning: another seed, stage, sequence_length, number of lanes, or slice of a
    source.
    """
    now = {"version": VERSION, "seed": mixture.seed, "stage": mixture.stage, "sequence_length": mixture.sequence_length}
    problems = [f"{key}: {value!r} cannot go on from data state with {state[key]!r}" for key, value in now.items()
                if state[key] != value]  # fmt: skip
    if len(state["lanes"]) != mixture.num_lanes:
        problems.append(f"global_batch_size: {mixture.num_lanes} cannot go on from a state of {len(state['lanes'])}")
    before = {source["name"]: place for place, source in enumerate(state["sources"])}
    problems += [
        f"source {source.name}: slice: {source.slice_size} cannot go on from data state with {old}, the lanes' turns "
        f"would be other samples; write slice: {old} into the mixture, or rename the source to begin it afresh"
        for source in mixture.sources
        if source.name in before
        and (old := state["sources"][before[source.name]].get("slice", 1)) != source.slice_size
    ]
    if problems:
        raise UserError(problems)

    changes = []
    goes_on: dict[int, int] = {}  # number of a source in the state -> its number now
    for number, source in enumerate(mixture.sources):
        if source.name not in before:
            changes.append(f"source {source.name} is new and begins at its first sample")
            continue
        old = state["sources"][before[source.name]]
        if old["samples"] != len(source):
            changes.append(f"source {source.name} has {len(source)} samples, had {old['samples']}: it begins afresh")
            continue
        if old["tokens"] != mixture.num_tokens[number]:
            changes.append(
                f"source {source.name} has {mixture.num_tokens[number]} tokens in the same samples, had "
                f"{old['tokens']}: it goes on where it was, packs differ from here on"
            )
        goes_on[before[source.name]] = number
    names = {source.name for source in mixture.sources}
    changes += [f"source {name} is gone, with its waiting samples" for name in before if name not in names]
    balanced_anew, sentences = _weights_changed(state, mixture)
    return [_lane(lane, goes_on, mixture, balanced_anew) for lane in state["lanes"]], changes + sentences


def _weights_changed(state: Mapping[str, Any], mixture: Mixture) -> tuple[bool, list[str]]:
    """Whether token shares are counted anew: else a new source would be read alone until it has caught up."""
    old = {source["name"]: source["weight"] for source in state["sources"]}
    old_shares = dict(zip(old, whole_shares(list(old.values())), strict=True))
    shares = {source.name: share for source, share in zip(mixture.sources, mixture.shares, strict=True)}
    if old_shares == shares:
        return False, []
    now = zip(mixture.sources, mixture.weights, strict=True)
    changes = [f"source {source.name} has weight {weight}, had {old[source.name]}" for source, weight in now
               if source.name in old and old[source.name] != weight]  # fmt: skip
    return True, [*changes, "token shares are counted anew from here on"]


def _lane(lane: Mapping[str, Any], goes_on: Mapping[int, int], mixture: Mixture, balanced_anew: bool) -> LaneState:
    num_sources = len(mixture.sources)
    taken, tokens = [0] * num_sources, [0] * num_sources
    for old, new in goes_on.items():
        taken[new] = lane["taken"][old]
        tokens[new] = 0 if balanced_anew else lane["tokens"][old]
    waiting = _unpack_waiting(lane["waiting"], lane["taken"])
    return LaneState(
        tuple(taken), tuple(tokens), tuple((goes_on[old], turn) for old, turn in waiting if old in goes_on)
    )


def _pack_waiting(lane: LaneState) -> str:
    behind = list(lane.taken)
    packed = bytearray()
    for source, turn in reversed(lane.waiting):
        number = (behind[source] - 1 - turn) * len(behind) + source
        behind[source] = turn
        while number > 127:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return base64.b85encode(packed).decode()


def _unpack_waiting(text: str, taken: Sequence[int]) -> list[tuple[int, int]]:
    behind, waiting = list(taken), []
    number = shift = 0
    for byte in base64.b85decode(text):
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            back, source = divmod(number, len(behind))
            behind[source] -= back + 1
            waiting.append((source, behind[source]))
            number = shift = 0
    return waiting[::-1]
