"""One table of all costs that have a bound: training steps, prediction, scale, evaluate, report, import and help.

    python benchmarks/bounds.py           # on an idle machine, Linux: 18 minutes on two cores
    python benchmarks/bounds.py --quick   # a smoke test of two minutes on two idle cores, whose figures mean little

Each part is also a command of its own, with its own options: step_bounds.py, scale.py, evaluate_cost.py, report_cost.py
and import_cost.py. They run one after the other, each in a process of its own. Figures above their bounds are marked,
and do not change the exit status.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from measures import Measure, arguments_of, read, show

PARTS = ("step_bounds", "scale", "evaluate_cost", "report_cost", "import_cost")


def in_its_own_process(part: str, quick: bool) -> list[Measure]:
    """The figures of one part, which prints its own tables, too."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measures.json")
        options = ["--json", str(file), *(["--quick"] if quick else [])]
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{part}.py")), *options], check=True)
        return read(file)


def main() -> None:
    arguments = arguments_of(__doc__)
    show([measure for part in PARTS for measure in in_its_own_process(part, arguments.quick)], arguments)


if __name__ == "__main__":
    main()
