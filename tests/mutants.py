"""Mutants: small wrong changes, each a failure that makes no noise, which the ordinary tests must catch.

    python tests/mutants.py [--named] [--only NAME ...]

Each ``mutants/NAME.patch`` is a unified diff under a header of three fields: ``What`` is broken, which ``Invariants``
of docs/invariants.md it violates, and the ``Tests`` (pytest arguments) that see it first. A mutant is applied to a copy
of the tree; when the named tests stay green, all of SUITE runs. At the end the tests that caught something run on the
unchanged copy: what fails there as well proves nothing.

Exit status 1 when a mutant survives, does not apply, breaks more than it should (no test could be collected), hangs, or
is not proved.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATCHES = ROOT / "tests" / "mutants"
# test_mutants.py is left out: it sees that a patch was applied, whatever the patch does.
SUITE = ["tests/unit", "tests/parity", "tests/distributed", "tests/faults/test_stages.py"]
SUITE += ["--ignore=tests/unit/test_mutants.py"]
FIELDS = ("What", "Invariants", "Tests")
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Mutant:
    name: str
    path: Path
    what: str
    invariants: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """``caught_by`` is the first test that failed, None unless ``verdict`` is "caught"."""

    mutant: Mutant
    verdict: str
    caught_by: str | None
    seconds: float


def read_mutants(folder: Path = PATCHES) -> list[Mutant]:
    return [read_mutant(path) for path in sorted(folder.glob("*.patch"))]


def read_mutant(path: Path) -> Mutant:
    """Raises ValueError when a field of the header is missing."""
    header = path.read_text().partition("\n--- ")[0]
    found = dict(re.findall(r"^(\w+): (.*(?:\n .*)*)", header, re.MULTILINE))
    missing = [field for field in FIELDS if field not in found]
    if missing:
        raise ValueError(f"{path}: the header lacks {', '.join(missing)}")
    what, invariants, tests = (" ".join(found[field].split()) for field in FIELDS)
    return Mutant(path.stem, path, what, invariants, tuple(shlex.split(tests)))


def apply(mutant: Mutant, tree: Path, check_only: bool = False) -> str | None:
    """What git says when the patch does not apply, else None."""
    # Inside another repository git would take the paths for that one's and skip them without a word.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", "apply", *(["--check"] if check_only else []), str(mutant.path)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


def copy_tree(to: Path) -> None:
    """All files that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_tests(tree: Path, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """("green", "red", "broken" or "hangs", the failed tests)."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "--no-header", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "hangs", []
        output.seek(0)
        text = output.read()
    lines = [line.removeprefix("FAILED ") for line in text.splitlines() if line.startswith("FAILED ")]
    failed = [line.split(" - ")[0] for line in lines]
    if status == 0:
        return "green", []
    if status == 1 and failed:
        print("\n".join(line[:200] for line in lines))
        return "red", failed
    print("\n".join(text.splitlines()[-15:]))
    return "broken", []


def try_mutant(mutant: Mutant, clean: Path, scratch: Path, named_only: bool) -> Result:
    began = time.monotonic()
    tree = scratch / mutant.name
    shutil.copytree(clean, tree)
    try:
        refused = apply(mutant, tree)
        if refused is not None:
            print(refused)
            return Result(mutant, "does not apply", None, 0.0)
        state, failed = run_tests(tree, ["-x", *mutant.tests])
        if state == "green" and not named_only:
            state, failed = run_tests(tree, ["-x", *SUITE])
    finally:
        shutil.rmtree(tree)
    verdict = {"green": "SURVIVED", "red": "caught"}.get(state, state)
    return Result(mutant, verdict, failed[0] if failed else None, time.monotonic() - began)


def red_without_mutant(results: Sequence[Result], clean: Path) -> set[str]:
    """Of the tests that caught something, those that fail on the unchanged tree too."""
    tests = sorted({result.caught_by for result in results if result.caught_by is not None})
    if not tests:
        return set()
    state, failed = run_tests(clean, tests)
    return set(tests) if state in ("broken", "hangs") else set(failed)


def print_table(results: Sequence[Result], red: set[str]) -> int:
    """The table; how many mutants are not proved to be caught."""
    width = max(len(result.mutant.name) for result in results)
    open_ones = 0
    for result in results:
        verdict = "NOT PROVED" if result.caught_by in red else result.verdict
        open_ones += verdict != "caught"
        print(f"{result.mutant.name:<{width}}  {verdict:<10} {result.seconds:5.0f} s  {result.caught_by or ''}")
    print(f"{len(results) - open_ones} of {len(results)} mutants caught")
    return open_ones


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants")
    parser.add_argument("--named", action="store_true", help="a mutant's named tests only, never the whole suite")
    chosen = parser.parse_args()
    mutants = read_mutants()
    unknown = sorted(set(chosen.only or ()) - {mutant.name for mutant in mutants})
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)} (see {PATCHES})")
    if chosen.only:
        mutants = [mutant for mutant in mutants if mutant.name in chosen.only]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        clean = Path(folder) / "clean"
        copy_tree(clean)
        results = []
        for mutant in mutants:
            results.append(try_mutant(mutant, clean, Path(folder), chosen.named))
            print(f"{mutant.name}: {results[-1].verdict}", flush=True)
        red = red_without_mutant(results, clean)
    print()
    return 1 if print_table(results, red) else 0


if __name__ == "__main__":
    sys.exit(main())
