"""Writes the pages that follow from the code: python docs/generate.py.

``reference/capabilities.md`` is not among them: it is written by the tests that run every trainer, see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nnunet_dg.adaptation.settings import METHODS as ADAPTATIONS
from nnunet_dg.citations import ANATOMIX, MIND, NNUNET, RAM_DSIR
from nnunet_dg.cli import _parser
from nnunet_dg.method import Method, Paper, describe_settings
from nnunet_dg.planning.memory import DropGenPlanning
from nnunet_dg.training.catalog import METHODS

DOCS = Path(__file__).parent
COMPARISONS = ("nnunet_dg.trainers.baselines", "nnunet_dg.trainers.comparisons")
NOTE = "<!-- Written by docs/generate.py; do not edit. -->"


def commands() -> str:
    """Every command of ``nnunet-dg`` with its arguments."""
    parser = _parser()
    lines = [
        "# Commands", "", NOTE, "",
        "Training, prediction, ensembles and postprocessing are nnU-Net's own commands. `nnunet-dg` adds these:", "",
        "| command | purpose |", "| --- | --- |",
    ]  # fmt: skip
    leaves = list(_leaves(parser, ""))
    for name, _, purpose in leaves:
        lines.append(f"| [`{name}`](#{_anchor(name)}) | {_cell(purpose)} |")
    for name, command, purpose in leaves:
        lines += ["", f"## `{name}`", "", _text(command.description or _sentence(purpose))]
        arguments = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
        if arguments:
            lines += ["", "| argument | meaning |", "| --- | --- |"]
            lines += [f"| {_cell(_signature(a))} | {_cell(_help(command, a))} |" for a in arguments]
    return "\n".join(lines) + "\n"


def _leaves(parser: argparse.ArgumentParser, purpose: str) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Commands without subcommands, and those that do something of their own."""
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not subparsers:
        yield parser.prog, parser, purpose
    for action in subparsers:
        purposes = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield from _leaves(command, purposes.get(name, ""))


def _signature(action: argparse.Action) -> str:
    """The argument as it is typed, with the values that it takes."""
    values = action.metavar or action.dest
    if action.choices:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == "+":
        values = f"{values} [{values} ...]"
    if not action.option_strings:
        return f"`{values}`"
    value = "" if action.nargs == 0 else f" {values if action.metavar or action.choices else values.upper()}"
    required = ", required" if action.required else ""
    return ", ".join(f"`{option}{value}`" for option in action.option_strings) + required


def _help(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = command._get_formatter()
    return _text(formatter._expand_help(action) if action.help else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ')', '?')) else '.'}"


def _text(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup."""
    for mark in "\\`*<[":
        text = text.replace(mark, f"\\{mark}")
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def settings() -> str:
    """Every setting of every method."""
    lines = [
        "# Settings", "", NOTE, "",
        "Settings go to the top level of the plans file, in the section of their method: "
        '`"nnunet_dg": {"dropgen": {"p": 0.25}}`. See [Change settings](../how-to/settings.md).',
    ]  # fmt: skip
    for key, method in METHODS.items():
        where = f"Class `{method.__module__}.{method.__name__}`."
        lines += ["", f"## `{key}`", "", f"{_reference(method.paper)} {where}", ""]
        lines += ["| setting | accepted | default | meaning |", "| --- | --- | --- | --- |"]
        for s in describe_settings(method):
            cells = [f"`{s.name}`", _text(s.accepted), f"`{json.dumps(s.default)}`", _markdown(s.description)]
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def trainers() -> str:
    """Every trainer and planner of this package."""
    lines = [
        "# Trainers and planners", "", NOTE, "",
        "A trainer's name goes to `nnUNetv2_train ... -tr`, also when predicting. What works with each is in "
        "[Capabilities](capabilities.md), what each costs in [Costs](../explanation/costs.md).", "",
        "## Which trainer", "", _readme("Which trainer"), "",
        "## All trainers", "", "Models of plans by the AnyModality planners and the planners named `_Paper` need this "
        "package to predict, whatever the trainer.", "",
        "| trainer | description | methods, with the settings that differ from the defaults | predicts with plain "
        "nnU-Net, after export |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    declared = _declared("nnunetv2.trainers")
    lines += [_trainer(name, trainer) for name, trainer in declared if trainer.__module__ not in COMPARISONS]
    lines += [
        "", "## Comparisons", "",
        "Published baselines, whose pages say how their settings differ from the paper's, and the comparisons of "
        "DropGen's paper. See [Compare with published methods](../how-to/compare.md) and "
        "[Baselines](../methods/baselines.md).", "",
        "| trainer | description | method | predicts with plain nnU-Net, after export |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [_trainer(name, trainer) for name, trainer in declared if trainer.__module__ in COMPARISONS]
    lines += [
        "", "## Planners", "",
        "A planner's name goes to `nnUNetv2_plan_experiment ... -pl`, and the plans' to `-p` of every later command. "
        "See [Plan for memory and for CT and MR](../how-to/planners.md).", "",
        "| planner | plans | description | counts DropGen's features | fits CT and MR |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, planner in _declared("nnunetv2.planners"):
        counts = "yes" if issubclass(planner, DropGenPlanning) else "no"
        fits = "yes" if planner.any_modality else "no"
        lines.append(f"| `{name}` | `{planner.plans_name}` | {_cell(_first_paragraph(planner))} | {counts} | {fits} |")
    return "\n".join(lines) + "\n"


def citations() -> str:
    """BibTeX of nnU-Net, of every method, of test-time adaptation, and of what methods build on."""
    lines = [
        "# Citations", "", NOTE, "",
        "Please cite nnU-Net and the methods that you use. `nnunet-dg cite TRAINER` prints the entries of a trainer, "
        "and `--adapt METHOD` that of a method of test-time adaptation.",
        "", "## nnU-Net", *_entry("nnunet", NNUNET), "", "## Methods",
    ]  # fmt: skip
    for key, method in METHODS.items():
        lines += _entry(key, method.paper)
    lines += ["", "## Test-time adaptation"]
    for key, method in ADAPTATIONS.items():
        lines += _entry(key, method.paper)
    lines += ["", "## Extractors, and what methods build on"]
    for key, paper in {"anatomix": ANATOMIX, "mind": MIND, "ram_dsir": RAM_DSIR}.items():
        lines += _entry(key, paper)
    return "\n".join(lines) + "\n"


def baselines() -> str:
    """A section for each baseline of the catalog: its paper, its settings, and its functions from their docstrings."""
    lines = [
        "# Baselines", "", NOTE, "",
        "Published methods to compare with. Their trainers are in "
        "[Trainers](../reference/trainers.md#comparisons).",
    ]  # fmt: skip
    for key, method in METHODS.items():
        if not method.__module__.startswith("nnunet_dg.baselines."):
            continue
        lines += ["", f"## {method.__name__}", "", _reference(method.paper), ""]
        lines += [f"Acts on: {method.slot}. Settings: [`{key}`](../reference/settings.md#{key}).", ""]
        lines += [f"::: {method.__module__}", "    options:", "      show_root_heading: false"]
        lines += ["      filters: ['!^_', '!Training$', '!^training_module$']"]
    return "\n".join(lines) + "\n"


def _readme(section: str) -> str:
    """A section of the README, with its links as seen from the folder of this page."""
    text = DOCS.with_name("README.md").read_text(encoding="utf-8")
    return text.partition(f"## {section}\n")[2].partition("\n## ")[0].strip().replace("](docs/", "](../")


def _trainer(name: str, trainer: Any) -> str:
    used = ", ".join(_call(method) for method in trainer.methods)
    plain = "no" if any(method.changes_network and not method.folds_at_export for method in trainer.methods) else "yes"
    return f"| `{name}` | {_cell(_first_paragraph(trainer))} | {_cell(used)} | {plain} |"


def _entry(key: str, paper: Paper) -> list[str]:
    return ["", "```bibtex", paper.bibtex(key), "```"]


def _reference(paper: Paper) -> str:
    return f"{_text(paper.authors)}: [*{_text(paper.title)}*]({paper.url}), {_text(paper.venue)}, {paper.year}."


def _declared(group: str) -> list[tuple[str, Any]]:
    """This package's classes of an entry-point group, by name."""
    ours = [e for e in entry_points(group=group) if e.value.startswith("nnunet_dg.")]
    return [(e.name, e.load()) for e in sorted(ours, key=lambda e: e.name)]


def _call(method: Method) -> str:
    """The method as a link to its settings, with those that are not the defaults."""
    changed = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    values = "; " + ", ".join(f"`{name}` `{json.dumps(value)}`" for name, value in changed.items()) if changed else ""
    return f"[{type(method).__name__}](settings.md#{method.key}){values}"


def _first_paragraph(documented: type) -> str:
    return _markdown(" ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split()))


def _markdown(docstring: str) -> str:
    """A docstring's reStructuredText as Markdown, with JSON's null in place of None; it starts a sentence."""
    text = re.sub(r"``(.+?)``", r"`\1`", docstring).replace("<", "\\<")
    first = text[:1] if text.startswith("nnU-Net") else text[:1].upper()
    return re.sub(r"\bNone\b", "null", first + text[1:])


PAGES = {
    "reference/settings.md": settings,
    "reference/trainers.md": trainers,
    "reference/commands.md": commands,
    "reference/citations.md": citations,
    "methods/baselines.md": baselines,
}


def main() -> int:
    """Write all pages; with --check only compare, and return 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    differing = [name for name, page in PAGES.items() if _differs(DOCS / name, page())]
    for name in differing:
        if not check:
            (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"{'Differs' if check else 'Written'}: {DOCS / name}")
    return int(check and bool(differing))


def _differs(path: Path, content: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != content


if __name__ == "__main__":
    sys.exit(main())
