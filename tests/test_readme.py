"""What the README promises exists, and its commands are those that CI runs."""

import json
import re
import shlex
from dataclasses import asdict
from importlib.metadata import entry_points

from helpers import REPOSITORY

from nnunet_dg.cli import _parser
from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.dropgen.settings import CHOICES
from nnunet_dg.sgcg import SgCGSettings
from nnunet_dg.tinymig import TinyMIGSettings
from nnunet_dg.tinymig.consistency import DIVERGENCES
from nnunet_dg.tinymig.settings import ABLATIONS, STATISTICS
from nnunet_dg.training.plans import METHODS, resolve

SETTINGS = {"dropgen": DropGenSettings, "sgcg": SgCGSettings, "tinymig": TinyMIGSettings}
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_every_trainer_is_in_the_table_and_every_name_in_it_exists():
    ours = {e.name for e in entry_points(group="nnunetv2.trainers") if e.value.startswith("nnunet_dg.")}
    assert set(re.findall(r"^\| `(nnUNetTrainer\w+)`", README, re.M)) == ours


def test_every_trainer_is_in_the_table_of_what_was_run():
    ours = {e.name for e in entry_points(group="nnunetv2.trainers") if e.value.startswith("nnunet_dg.")}
    table = (REPOSITORY / "docs" / "capabilities.md").read_text()
    assert set(re.findall(r"^\| `(nnUNetTrainer\w+)`", table, re.M)) == ours


def test_every_setting_is_in_the_table_with_its_choices_and_default():
    choices = CHOICES | {"statistics": STATISTICS, "divergence": tuple(DIVERGENCES), "ablate": ABLATIONS}
    tables = re.split(r"^`(\w+)`:$", README, flags=re.M)
    assert set(tables[1::2]) == set(METHODS)
    for method, table in zip(tables[1::2], tables[2::2], strict=True):
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table.split("\n\n")[1], re.M))
        defaults = asdict(SETTINGS[method]())
        assert rows.keys() == defaults.keys()
        for name, default in defaults.items():
            assert (default if isinstance(default, str) else json.dumps(default)) in rows[name].split("|")[-1]
            assert all(f"`{choice}`" in rows[name] for choice in choices.get(name, ()) if choice is not None)


def test_the_example_settings_are_accepted():
    (example,) = (block for block in re.findall(r"```json\n(.*?)```", README, re.S) if "nnunet_dg" in block)
    settings = resolve(json.loads("{" + example + "}"), "dropgen", DropGenSettings())
    assert (settings.p, settings.combine) == (0.25, "mean")


def test_our_own_commands_parse():
    ours = [shlex.split(c)[1:] for c in COMMANDS if c.startswith("nnunet-dg")]
    assert len(ours) == 9
    for arguments in ours:
        _parser().parse_args(arguments)


def test_ci_runs_the_readmes_test_command():
    assert any(command.endswith("/bin/pytest") for command in COMMANDS)
    assert "grep -m1 '/bin/pytest$' README.md" in (REPOSITORY / ".ci" / "run").read_text()


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 3
    assert all((REPOSITORY / link).exists() for link in links)
