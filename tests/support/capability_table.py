"""Writes docs/capabilities.md from the tests that ran: pytest -m matrix --capabilities=docs/capabilities.md."""

from collections import defaultdict
from pathlib import Path

import pytest

INTRODUCTION = """# What each trainer can do

Every cell is a test that ran and passed, or the message with which the trainer refuses. The tests run nnU-Net's own
commands (`tests/contract/test_capabilities.py`), but for `nnUNetPredictor`, which is the API, and DDP, where two gloo
processes on CPU stand for two GPUs (`tests/training/test_ddp.py`). Compiling is tested with a backend that needs no
C++ compiler. Written by `pytest -m matrix --capabilities=docs/capabilities.md`; not by hand.
"""


class CapabilityTable:
    """Collects ``(trainer, capability)`` of passed tests; with a failure or a gap, nothing is written.

    With pytest-xdist, tests run in other processes than this table is written in; their reports come here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, str]] = defaultdict(dict)  # by trainer and capability
        self.place: dict[str, tuple[str, int]] = {}  # of a capability's test, in the sources
        self.same_as: dict[str, tuple[str, str]] = {}  # a variant's family, and the test of it

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.user_properties.append(("test", item.originalname))
        report.user_properties += [("capability", marker.args[0]) for marker in item.iter_markers("capability")]
        return report

    def pytest_runtest_logreport(self, report):
        noted = dict(report.user_properties)
        if report.when != "call" or not report.passed:
            return
        for capability in (value for name, value in report.user_properties if name == "capability"):
            refusal = noted.get("refusal")
            cell = f"refused: “{refusal.replace('|', '/')}”" if refusal else f"`{noted['test']}`"
            self.cells[noted["trainer"]][capability] = cell
            self.place.setdefault(capability, report.location[:2])
        if "same_as" in noted:
            self.same_as[noted["trainer"]] = (noted["same_as"], noted["test"])

    def pytest_sessionfinish(self, session, exitstatus):
        if hasattr(session.config, "workerinput"):
            return
        gaps = [(t, c) for t, row in self.cells.items() for c in self.capabilities() if c not in row]
        if exitstatus == 0 and self.cells and not gaps:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.markdown())
        else:
            print(f"\n{self.path} is not written: exit status {int(exitstatus)}, missing {gaps}")

    def capabilities(self) -> list[str]:
        return sorted(
            {capability for row in self.cells.values() for capability in row}, key=lambda c: (self.place[c], c)
        )

    def markdown(self) -> str:
        capabilities = self.capabilities()
        lines = [INTRODUCTION, "| trainer | " + " | ".join(capabilities) + " |"]
        lines.append("| --- |" + " --- |" * len(capabilities))
        for trainer, row in sorted(self.cells.items()):
            lines.append(f"| `{trainer}` | " + " | ".join(row.get(c, "") for c in capabilities) + " |")
        for trainer, (family, test) in sorted(self.same_as.items()):
            lines.append(f"| `{trainer}` | as `{family}` (`{test}`) |" + " |" * (len(capabilities) - 1))
        return "\n".join(lines) + "\n"
