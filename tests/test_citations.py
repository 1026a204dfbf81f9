"""Methods and citations, by the commands that print them."""

import re
from dataclasses import dataclass

import pytest

from nnunet_dg.citations import papers_of
from nnunet_dg.cli import main
from nnunet_dg.dropgen import DropGen
from nnunet_dg.method import Method, Paper
from nnunet_dg.training import overview
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.overview import default_methods, trainers_by_method


def cited(capsys, *words):
    assert main(["cite", *words]) == 0
    return re.findall(r"^@\w+\{(\w+),$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("trainer", "keys"),
    [
        ("nnUNetTrainer", ["nnunet"]),
        ("nnUNetTrainerDropGen", ["nnunet", "dropgen", "anatomix"]),
        ("nnUNetTrainerDropGen_MIND", ["nnunet", "dropgen", "mind"]),
        ("nnUNetTrainerSgCG", ["nnunet", "sgcg", "ram_dsir"]),
        ("nnUNetTrainerDropGenTinyMIG", ["nnunet", "dropgen", "anatomix", "tinymig"]),
    ],
)
def test_a_trainer_is_cited_with_nnunet_and_what_it_uses(capsys, trainer, keys):
    assert cited(capsys, trainer) == keys


def test_methods_of_test_time_adaptation_are_cited_too(capsys):
    assert cited(capsys, "nnUNetTrainer", "--adapt", "tent", "alpha") == ["nnunet", "tent", "alpha"]
    assert cited(capsys, "nnUNetTrainerDropGen", "--adapt", "sfb") == ["nnunet", "dropgen", "anatomix", "sfb"]


def test_an_extractor_that_is_not_computed_is_not_cited():
    assert list(papers_of([DropGen(inputs="image")])) == ["nnunet", "dropgen"]


def test_an_unknown_trainer_is_one_line(capsys):
    assert main(["cite", "nnUNetTrainerDropGne"]) == 1
    assert (
        "does not find a trainer nnUNetTrainerDropGne. Did you mean 'nnUNetTrainerDropGen'?" in capsys.readouterr().err
    )


def test_an_entry_is_what_bibtex_reads():
    entry = Paper("A Title", "Ada Lovelace, Alan Turing", "A Venue", 2026, "https://example.org").bibtex("key")
    assert entry.splitlines()[0] == "@inproceedings{key,"
    assert "  booktitle = {A Venue}," in entry
    assert "  author = {Ada Lovelace and Alan Turing}," in entry
    assert entry.count("{") == entry.count("}")


@pytest.mark.parametrize(("entry", "field"), [("article", "journal"), ("misc", "note")])
def test_a_journal_and_other_publications_have_their_own_types_of_entries(entry, field):
    lines = Paper("A Title", "Ada Lovelace", "A Venue", 2026, "https://example.org", entry).bibtex("key").splitlines()
    assert lines[0] == f"@{entry}{{key,"
    assert f"  {field} = {{A Venue}}," in lines


@pytest.mark.parametrize("paper", [*papers_of([]).values(), *(method.paper for method in METHODS.values())])
def test_journals_and_preprints_have_the_types_of_their_venues(paper):
    journal = any(word in paper.venue for word in ("Transactions", "Journal", "Nature", "Analysis"))
    preprint = any(word in paper.venue for word in ("arXiv", "Submission"))
    assert paper.entry == ("article" if journal else "misc" if preprint else "inproceedings")


def test_every_method_is_listed_with_its_trainers(capsys):
    assert main(["methods"]) == 0
    paragraphs = capsys.readouterr().out.strip().split("\n\n")
    assert [p.split(" ")[0] for p in paragraphs[: len(METHODS)]] == list(METHODS)
    listed = dict(zip(METHODS, paragraphs, strict=False))
    assert "-tr nnUNetTrainerDropGen_p025" in listed["dropgen"]
    assert "-tr nnUNetTrainerDropGenSgCG" in listed["dropgen"]
    assert "-tr nnUNetTrainerDropGenSgCG" in listed["sgcg"]
    assert "nnUNetTrainerTinyMIG" not in listed["sgcg"]


def test_a_trainer_that_cannot_be_imported_is_left_out(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nnunetv2.trainers]\nnnUNetTrainerBroken = nowhere_to_be_found:x\n")
    monkeypatch.syspath_prepend(tmp_path)
    listed = {name for trainers in trainers_by_method().values() for name in trainers}
    assert "nnUNetTrainerBroken" not in listed
    assert "nnUNetTrainerSgCG" in listed


def test_another_packages_method_has_the_settings_with_which_a_trainer_lists_it(monkeypatch):
    @dataclass(frozen=True)
    class Noise(Method):
        key = "feature_noise"
        radius: int

    class Trainer:
        methods = (Noise(3),)

    class EntryPoint:
        name, load = "nnUNetTrainerNoise", staticmethod(lambda: Trainer)

    monkeypatch.setattr(overview, "entry_points", lambda group: [EntryPoint])
    assert default_methods() == [*(method() for method in METHODS.values()), Noise(3)]
