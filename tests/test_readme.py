"""What the README promises exists, and its commands are those that CI runs."""

import re
import shlex
from importlib.metadata import entry_points

import pytest
from helpers import REPOSITORY

from nnunet_dg.cli import _parser

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
OURS = {e.name: e.value for e in entry_points(group="nnunetv2.trainers") if e.value.startswith("nnunet_dg.")}
COMPARISONS = ("nnunet_dg.trainers.baselines:", "nnunet_dg.trainers.comparisons:")
MAIN = {name for name, value in OURS.items() if not value.startswith(COMPARISONS)}


def commands_in(text: str) -> list[str]:
    """The commands in the Bash blocks of a page, without comments, one for each line."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines]


def test_is_short():
    assert len(README.splitlines()) <= 130


def test_every_trainer_is_in_the_table_and_every_name_in_it_exists():
    assert set(re.findall(r"^\| `(nnUNetTrainer\w+)`", README, re.M)) == MAIN


def test_every_trainer_is_in_the_table_of_what_was_run():
    table = (REPOSITORY / "docs" / "reference" / "capabilities.md").read_text(encoding="utf-8")
    assert MAIN <= set(re.findall(r"`(nnUNetTrainer\w+)`", table)) <= OURS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_our_own_commands_parse(page):
    for command in commands_in(page.read_text(encoding="utf-8")):
        if command.startswith("nnunet-dg"):
            assert callable(_parser().parse_args(shlex.split(command)[1:]).run)


def test_the_readme_shows_the_commands_that_ci_runs():
    commands = commands_in(README)
    assert 'python3 -m venv .venv && .venv/bin/pip install ".[all]" && .venv/bin/nnunet-dg demo' in commands
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest' in commands
    assert "grep -m1 '/bin/pytest$' README.md" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_every_page_is_linked():
    """From the README, and guides from the first page of the website as well."""
    readme, index = ((REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "docs/index.md"))
    for page in (REPOSITORY / "docs").glob("*/*.md"):
        path = page.relative_to(REPOSITORY / "docs").as_posix()
        if page.parent.name != "results":
            assert f"(docs/{path}" in readme
        if page.parent.name == "how-to":
            assert f"({path}" in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_of_the_repository_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:examples|benchmarks|tests|nnunet_dg|docs)/[\w./-]*)", text):
        assert (REPOSITORY / name).exists(), name
