"""Writes docs/reference/capabilities.md from the passed tests: pytest -m matrix --capabilities=FILE."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

INTRODUCTION = """# Capabilities

What of nnU-Net works with each trainer. ✓ is a test that ran and passed, named in the last column; a number is a
refusal, whose message is listed below. The tests run nnU-Net's own commands (`tests/contract/test_capabilities.py`),
except for `nnUNetPredictor`, which is the API, and DDP, where two gloo processes on CPU stand for two GPUs
(`tests/training/test_ddp.py`). Compiling is tested with a backend that needs no C++
compiler; `tests/training/test_compile.py` tests one method of each kind with the real one.

Written by `pytest -m matrix --capabilities=docs/reference/capabilities.md`, not by hand.
"""


class Cell(NamedTuple):
    """A passed test, and the message of a refusal or an empty string."""

    test: str
    refusal: str


class CapabilityTable:
    """Collects ``(trainer, capability)`` of passed tests. The table is not written if a test failed or is missing.

    The tests take an hour. Those that passed are kept in ``FILE.passed.json`` until the table is written: after a
    repair, run the tests that failed, with the same option. Remove that file to begin anew.

    With pytest-xdist, tests run in worker processes, which send their reports to the process that writes the table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Cell]] = defaultdict(dict)  # by trainer and capability
        self.place: dict[str, tuple[str, int]] = {}  # file and line of a capability's test
        self.same_as: dict[str, tuple[str, str]] = {}  # the family of a variant, and the test that compares them
        self.passed_file = path.with_name(f"{path.name}.passed.json")
        self.passed = json.loads(self.passed_file.read_text()) if self.passed_file.exists() else {}  # by node id
        for properties, location in self.passed.values():
            self.add(properties, location)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.user_properties.append(("test", item.originalname))
        report.user_properties += [("capability", marker.args[0]) for marker in item.iter_markers("capability")]
        return report

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed[report.nodeid] = (report.user_properties, report.location[:2])
            self.add(report.user_properties, report.location[:2])

    def add(self, user_properties, place):
        properties = dict(user_properties)
        for capability in (value for name, value in user_properties if name == "capability"):
            self.cells[properties["trainer"]][capability] = Cell(properties["test"], properties.get("refusal", ""))
            self.place.setdefault(capability, tuple(place))
        if "same_as" in properties:
            self.same_as[properties["trainer"]] = (properties["same_as"], properties["test"])

    def pytest_sessionfinish(self, session, exitstatus):
        if hasattr(session.config, "workerinput"):
            return
        gaps = [(t, c) for t, row in self.cells.items() for c in self.capabilities() if c not in row]
        if exitstatus == 0 and self.cells and not gaps:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.markdown(), encoding="utf-8")
            self.passed_file.unlink(missing_ok=True)
        else:
            self.passed_file.write_text(json.dumps(self.passed), encoding="utf-8")
            print(f"\n{self.path} is not written: exit status {int(exitstatus)}, missing {gaps}.")
            print(f"Tests that passed are kept in {self.passed_file}.")

    def capabilities(self) -> list[str]:
        return sorted(
            {capability for row in self.cells.values() for capability in row}, key=lambda c: (self.place[c], c)
        )

    def markdown(self) -> str:
        trainers, capabilities = sorted(self.cells), self.capabilities()
        refusals = [(t, c) for c in capabilities for t in trainers if self.cells[t][c].refusal]
        lines = [INTRODUCTION, "| | " + " | ".join(f"`{trainer}`" for trainer in trainers) + " | tests |"]
        lines.append("| --- |" + " --- |" * (len(trainers) + 1))
        for capability in capabilities:
            cells = [self.cells[trainer][capability] for trainer in trainers]
            shown = [
                str(refusals.index((trainer, capability)) + 1) if cell.refusal else "✓"
                for trainer, cell in zip(trainers, cells, strict=True)
            ]
            tests = ", ".join(f"`{test}`" for test in sorted({cell.test for cell in cells if not cell.refusal}))
            lines.append(f"| {capability} | {' | '.join(shown)} | {tests} |")
        if refusals:
            lines += ["", "## Refusals", ""]
            for number, (trainer, capability) in enumerate(refusals, 1):
                refusal = self.cells[trainer][capability].refusal
                lines.append(f"{number}. `{trainer}`, {capability}: `refused: “{refusal}”`")
        if self.same_as:
            lines += ["", "## Variants", ""]
            lines += [
                "A variant has the capabilities of its family, from which only its settings differ. A comparison",
                "shares its mechanism with the trainer in the second column; it was run by the test in the last one:",
                "it trains, is killed, resumes, validates and predicts in 3-D, and trains in 2-D or refuses to.",
                "",
                "| variant | has the capabilities of | test |",
                "| --- | --- | --- |",
            ]
            for trainer, (family, test) in sorted(self.same_as.items()):
                lines.append(f"| `{trainer}` | `{family}` | `{test}` |")
        return "\n".join(lines) + "\n"
