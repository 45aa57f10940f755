"""The layouts of the parity matrix by name: (processes, models, axes). make parity runs all of them.

Where a name lists no layers per pipeline part the automatic split is taken: uneven for eight layers, and everywhere
beyond two parts for six.
"""

from __future__ import annotations

from dataclasses import dataclass

from layout_parity import layout

from megatron_qwen3vl.config.schema import ParallelConfig

DENSE = ("dense_tied", "dense_untied")
ALL = (*DENSE, "moe")
UNTIED = ("dense_untied",)  # eight layers
MOE = ("moe",)
BUCKET = 8_000  # weights: several messages per chunk, one of them the output matrix alone
SIX = ("dense_tied", "moe")  # six layers


@dataclass(frozen=True)
class Entry:
    name: str
    processes: int
    kinds: tuple[str, ...]
    parallel: ParallelConfig


def _entries() -> list[Entry]:
    found = []

    def add(name: str, processes: int, kinds: tuple[str, ...], **axes: int | bool | str | tuple[int, ...]) -> None:
        found.append(Entry(name, processes, kinds, layout(**axes)))

    add("one process", 1, ALL)
    add("TP2", 2, DENSE, tp=2)
    add("TP2+SP", 2, ALL, tp=2, sp=True)
    add("PP2", 2, ALL, pp=2)
    add("PP2 [4, 2]", 2, SIX, pp=2, pipeline_layers=(4, 2))
    add("PP2 [4, 4]", 2, UNTIED, pp=2, pipeline_layers=(4, 4))
    add("PP2 x VPP2", 2, ALL, pp=2, vpp=2)
    add("PP2 x VPP2 [3, 1, 1, 3]", 2, UNTIED, pp=2, vpp=2, pipeline_layers=(3, 1, 1, 3))
    add("CP2 (gather)", 2, ALL, cp=2, cp_exchange="gather")
    add("CP2 (all-to-all)", 2, ALL, cp=2, cp_exchange="all_to_all")
    add("DP2", 2, ALL)
    add("EP2", 2, MOE, ep=2)
    add("TP2+SP x EP2", 2, MOE, tp=2, sp=True, ep=2)
    add("TP2+SP x ETP2", 2, MOE, tp=2, sp=True, etp=2)
    add("ETP2 (TP1)", 2, MOE, etp=2)
    add("EP2 x CP2 (2 processes)", 2, MOE, cp=2, ep=2)
    add("PP3", 3, ALL, pp=3)
    add("TP4+SP", 4, ALL, tp=4, sp=True)
    add("PP4", 4, ALL, pp=4)
    add("CP4", 4, ALL, cp=4)
    add("DP4", 4, ALL)
    add("EP4", 4, MOE, ep=4)
    add("TP2 x PP2", 4, DENSE, tp=2, pp=2)
    add("TP2+SP x PP2", 4, ALL, tp=2, sp=True, pp=2)
    add("TP2+SP x PP2 x VPP2", 4, UNTIED, tp=2, sp=True, pp=2, vpp=2)
    add("TP2+SP x CP2", 4, ALL, tp=2, sp=True, cp=2)
    add("TP2 x CP2", 4, DENSE, tp=2, cp=2)
    add("CP2 x PP2", 4, ALL, cp=2, pp=2)
    add("CP2 x PP2 x VPP2", 4, UNTIED, cp=2, pp=2, vpp=2)
    add("DP2 x CP2", 4, ALL, cp=2)
    add("DP2 x PP2", 4, ALL, pp=2)
    add("DP2 x TP2+SP", 4, ALL, tp=2, sp=True)
    add("EP2 x PP2", 4, MOE, ep=2, pp=2)
    add("EP2 x CP2", 4, MOE, ep=2, cp=2)
    add("TP2+SP x EP2 x ETP2", 4, MOE, tp=2, sp=True, ep=2, etp=2)
    add("EP2 x ETP2 (TP1)", 4, MOE, ep=2, etp=2)
    add("DP2, buckets", 2, ALL, bucket_size=BUCKET)
    add("DP2, no overlap", 2, ALL, overlap=False)
    add("EP2, buckets", 2, MOE, ep=2, bucket_size=BUCKET)
    add("DP4, buckets", 4, ALL, bucket_size=BUCKET)
    add("DP4, no overlap", 4, ALL, overlap=False)
    add("DP2 x PP2, buckets", 4, ALL, pp=2, bucket_size=BUCKET)
    add("DP2 x PP2, no overlap", 4, ALL, pp=2, overlap=False)
    add("DP2 x PP2 x VPP2, buckets", 4, ALL, pp=2, vpp=2, bucket_size=BUCKET)
    add("DP2 x CP2, buckets", 4, ALL, cp=2, bucket_size=BUCKET)
    add("DP2 x TP2+SP, buckets", 4, ALL, tp=2, sp=True, bucket_size=BUCKET)
    add("DP2 x EP2, buckets", 4, MOE, ep=2, bucket_size=BUCKET)
    add("DP2, images shared", 2, ALL, vision_dp=2)
    add("EP2, images shared", 2, MOE, ep=2, vision_dp=2)
    add("DP4, images shared", 4, ALL, vision_dp=4)
    add("DP4, images shared by 2", 4, ALL, vision_dp=2)
    add("DP2 x CP2, images shared", 4, ALL, cp=2, vision_dp=2)
    add("DP2 x PP2, images shared", 4, ALL, pp=2, vision_dp=2)
    add("DP2 x TP2+SP, images shared", 4, ALL, tp=2, sp=True, vision_dp=2)
    add("TP2+SP x CP2 x PP2", 8, ALL, tp=2, sp=True, cp=2, pp=2)
    add("DP2 x TP2+SP x CP2", 8, ALL, tp=2, sp=True, cp=2)
    add("DP4 x CP2, images shared by 2", 8, ALL, cp=2, vision_dp=2)
    add("TP2+SP x EP2 x CP2 x PP2", 8, MOE, tp=2, sp=True, ep=2, cp=2, pp=2)
    return found


ENTRIES = {entry.name: entry for entry in _entries()}
