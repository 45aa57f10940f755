"""All ordered pairs of 12 layouts (`make parity`): save in one, load in the other, on four processes.

After the load weights, moments and step equal what was saved, bit for bit; two more steps agree with the run that was
never interrupted within 1e-6 (the ViT's key biases within 1e-5: checkpoint_layouts.Drift says why), and in the same
layout bit for bit; without moments they do not. Exit status 1 otherwise.
The summary goes into docs/parallelism.md. Two pipeline ranks without listed layers are split automatically, unevenly.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from checkpoint_layouts import Hop, drift, reading, run_hops, run_origins, unequal  # noqa: E402
from layout_parity import layout, make_steps  # noqa: E402
from spawn import run_ranks  # noqa: E402

from tests.parity import reference as ref  # noqa: E402

PROCESSES = 4
DENSE = {
    "DP4": layout(),
    "DP2 x TP2": layout(tp=2),
    "DP2 x TP2+SP": layout(tp=2, sp=True),
    "TP4+SP": layout(tp=4, sp=True),
    "DP2 x PP2": layout(pp=2),
    "PP4": layout(pp=4),
    "DP2 x PP2 x VPP2": layout(pp=2, vpp=2),
    "DP2 x CP2": layout(cp=2),
    "CP4": layout(cp=4),
    "TP2+SP x CP2": layout(tp=2, sp=True, cp=2),
    "CP2 x PP2 [4, 4]": layout(cp=2, pp=2, pipeline_layers=(4, 4)),
    "TP2+SP x PP2": layout(tp=2, sp=True, pp=2),
}
EXPERTS = {
    "DP4": layout(),
    "DP2 x EP2": layout(ep=2),
    "EP4": layout(ep=4),
    "TP2+SP x EP2": layout(tp=2, sp=True, ep=2),
    "EP2 x CP2": layout(ep=2, cp=2),
    "EP2 x PP2": layout(ep=2, pp=2),
}
BEGIN, END = "<!-- checkpoint matrix -->", "<!-- end of checkpoint matrix -->"
DOCUMENT = ROOT / "docs" / "parallelism.md"


def main() -> int:
    lines, failures = [], 0
    for kind, layouts in (("dense_untied", DENSE), ("moe", EXPERTS)):
        with tempfile.TemporaryDirectory() as folder:
            sentence, wrong = matrix(kind, layouts, Path(folder))
        failures += wrong
        lines.append(sentence)
        print(sentence, flush=True)
    text = DOCUMENT.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text(before + "\n".join([BEGIN, *lines]) + "\n" + after)
    return int(failures > 0)


def matrix(kind: str, layouts: dict, root: Path) -> tuple[str, int]:
    model = ref.model_config(kind)
    twin = ref.transformers_model(model)
    weights = ref.ours_from_transformers({n: t.detach().clone() for n, t in twin.state_dict().items()}, model)
    steps = make_steps(model, twin, 4)
    run_ranks(run_origins, PROCESSES, PROCESSES, str(root), model, weights, steps, layouts, timeout=1200.0)
    worst, biases, failures, pairs, control = 0.0, 0.0, 0, 0, float("inf")
    for source in layouts:
        hops = [Hop(source, target, parallel) for target, parallel in layouts.items()]
        hops.append(Hop(source, source, layouts[source], without_moments=True))
        run_ranks(run_hops, PROCESSES, PROCESSES, str(root), model, weights, steps, hops, timeout=1200.0)
        with reading():
            for hop in hops[:-1]:
                other = unequal(hop.folder(root), root / source)
                after = drift(hop.folder(root), root / source)
                wrong = bool(other) or not after.within(0.0 if hop.target == source else 1e-6)
                failures += wrong
                pairs += hop.target != source
                worst, biases = max(worst, after.weights), max(biases, after.key_biases)
                line = f"{source:20} -> {hop.target:20} {after.weights:.2e} {after.key_biases:.2e}"
                print(line, "WRONG" if wrong else "", flush=True)
            control = min(control, drift(hops[-1].folder(root), root / source).weights)
        for hop in hops:
            shutil.rmtree(hop.folder(root))
    failures += not control > 1e-4
    sentence = (
        f"- {time.strftime('%Y-%m-%d')}, {kind}: {pairs} ordered pairs of {len(layouts)} layouts on {PROCESSES} "
        f"processes and {len(layouts)} times the same layout, {failures} wrong. Two steps later at most {worst:.1e} "
        f"from the uninterrupted run (the ViT's key biases {biases:.1e}); without moments at least {control:.1e}."
    )
    return sentence, failures


if __name__ == "__main__":
    sys.exit(main())
