"""The documentation says what the code does: generated pages and examples of settings."""

import json
import re
import runpy

import pytest
from helpers import REPOSITORY
from test_readme import PAGES

from nnunet_dg.cli import _parser
from nnunet_dg.errors import SettingsError
from nnunet_dg.method import describe_settings
from nnunet_dg.training.catalog import METHODS

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def generate():
    return runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize(
    "name",
    [
        "reference/settings.md",
        "reference/trainers.md",
        "reference/commands.md",
        "reference/citations.md",
        "methods/baselines.md",
    ],
)
def test_reference_pages_are_what_the_code_says(generate, name):
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == generate["PAGES"][name](), "run: python docs/generate.py"


def test_every_command_is_in_its_page(generate):
    page = generate["commands"]()
    (commands,) = (action.choices for action in _parser()._actions if action.choices)
    for name in commands:
        assert f"## `nnunet-dg {name}" in page


def test_every_setting_is_described(generate):
    page = generate["settings"]()
    for method in METHODS.values():
        for setting in describe_settings(method):
            assert setting.description, f"{method.__name__}: {setting.name}"
            assert f"| `{setting.name}` | " in page


def test_examples_of_settings_are_accepted():
    examples = [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        if "nnunet_dg" in block
    ]
    assert len(examples) >= 2
    for page, block in examples:
        for key, settings in json.loads("{" + block + "}")["nnunet_dg"].items():
            try:
                METHODS[key](**settings)
            except SettingsError as error:
                pytest.fail(f"{page}: {error}")


def test_the_site_is_built_without_a_warning(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build", reason="the extra docs is not installed")
    config = pytest.importorskip("mkdocs.config")
    loaded = config.load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build.build(loaded)
    assert (tmp_path / "methods" / "sgcg" / "index.html").is_file()


@pytest.mark.parametrize("name", ["own_trainer.py", "pyproject.toml"])
def test_the_page_about_trainers_shows_the_example(name):
    page = (DOCS / "how-to" / "own-trainer.md").read_text(encoding="utf-8")
    assert f"\n{(REPOSITORY / 'examples' / 'own_trainer' / name).read_text(encoding='utf-8')}```" in page
