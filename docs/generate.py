"""Writes the pages under docs/reference/ that follow from the code: python docs/generate.py.

``reference/capabilities.md`` is not among them: it is written by the tests that run every trainer, see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from nnunet_dg.cli import _parser

REFERENCE = Path(__file__).parent / "reference"
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
    for name, command, purpose in leaves:
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


PAGES = {"commands.md": commands}


def main() -> int:
    """Write all pages; with --check only compare, and return 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    differing = [name for name, page in PAGES.items() if _differs(REFERENCE / name, page())]
    for name in differing:
        if not check:
            (REFERENCE / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"{'Differs' if check else 'Written'}: {REFERENCE / name}")
    return int(check and bool(differing))


def _differs(path: Path, content: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != content


if __name__ == "__main__":
    sys.exit(main())
