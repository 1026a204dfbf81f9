"""What the README promises exists, and its commands are those that CI runs."""

import json
import re
import shlex
from importlib.metadata import entry_points

from helpers import REPOSITORY

from nnunet_dg.cli import _parser
from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.sgcg import SgCGSettings
from nnunet_dg.tinymig import TinyMIGSettings
from nnunet_dg.training.plans import resolve

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


def test_the_example_settings_are_accepted():
    (example,) = (block for block in re.findall(r"```json\n(.*?)```", README, re.S) if "nnunet_dg" in block)
    settings = resolve(json.loads("{" + example + "}"), DropGenSettings())
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
