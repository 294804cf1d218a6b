"""What an audit hands back: a line per check, and whether all passed."""

from dataclasses import dataclass

PASSED = "passed"


@dataclass(frozen=True)
class Outcome:
    """What one check found under one case.

    `verdict`: `passed`, `leaks`, `too strict`, `differs`, `not finite` or `raised`. `figure`: what was seen, of a
    finding. `measured`: what a passing check counts or compares.
    """

    verdict: str
    figure: str = ""
    measured: float = 0.0


@dataclass(frozen=True)
class Check:
    """One line of an audit: what was checked, the verdict, and the figure behind it."""

    name: str
    verdict: str
    figure: str

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return self.verdict == PASSED

    def __str__(self) -> str:
        verdict = self.verdict if self.passed else self.verdict.upper()
        return f"{verdict:<10}  {self.name:<30}  {self.figure}"


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found; truthy, and `passed`, when every check passed. It prints as a table.

    `notes` say what could not be checked.
    """

    audited: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that found something."""
        return tuple(check for check in self.checks if not check.passed)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        count = len(self.checks)
        result = f"all {count} checks passed" if self.passed else f"{len(self.failed)} of {count} checks FAILED"
        lines = [f"audit of {self.audited}: {result}", *map(str, self.checks)]
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)])
