"""What ends a command, and what takes one sample out, each with words for the user."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the configuration or the input. The command prints the problems and exits with 2.

    Each problem is one line that names the key, file or sample and says how to mend it.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunFailed(Exception):
    """The run cannot go on for a reason that is not in the configuration (exit status 1). On every rank alike."""


class BadSample(Exception):
    """One sample cannot be used. The message is the reason that ``quarantine.jsonl`` shows; the run goes on."""


class Stopped(Exception):
    """A signal asked for a stop and the state has been saved; the command exits with 75."""
