import json

import pytest

from nnunet_dg.datasets.domains import UNNAMED, read_domains
from nnunet_dg.errors import DataError

CASES = ["a", "b", "c", "d"]


@pytest.fixture
def folders(tmp_path):
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    preprocessed.mkdir()
    return raw, preprocessed


def write(folder, content):
    (folder / "domains.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_domains_of_a_batch_follow_from_its_case_keys(folders):
    write(folders[0], {"a": "Zurich", "b": "Berne", "c": "Zurich", "d": "Berne"})
    domains = read_domains(*folders, CASES)
    assert domains.names == ("Berne", "Zurich")
    assert domains.of_batch(["c", "b", "a"]).tolist() == [1, 0, 1]


def test_without_a_file_there_is_one_domain(folders):
    domains = read_domains(*folders, CASES)
    assert len(domains.names) == 1
    assert domains.of_batch(["d", "a"]).tolist() == [0, 0]


def test_is_copied_to_the_preprocessed_folder_and_works_without_the_raw_one(folders, tmp_path):
    write(folders[0], dict.fromkeys(CASES, "x"))
    first = read_domains(*folders, CASES)
    assert read_domains(tmp_path / "nowhere", folders[1], CASES) == first
    write(folders[0], dict.fromkeys("ab", "x") | dict.fromkeys("cd", "y"))  # changed since
    assert read_domains(*folders, CASES).names == ("x", "y")


def test_an_invalid_file_is_not_copied_and_the_copy_of_a_removed_one_is_ignored(folders):
    write(folders[0], dict.fromkeys(CASES, "x"))
    read_domains(*folders, CASES)
    write(folders[0], {"a": "x"})
    with pytest.raises(ValueError, match="without a domain"):
        read_domains(*folders, CASES)
    assert json.loads((folders[1] / "domains.json").read_text()) == dict.fromkeys(CASES, "x")
    (folders[0] / "domains.json").unlink()
    assert read_domains(*folders, CASES).names == (UNNAMED,)


def test_a_read_only_preprocessed_folder_is_reported_and_does_not_stop(folders, capsys, monkeypatch):
    write(folders[0], dict.fromkeys(CASES, "x"))

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    assert read_domains(*folders, CASES).names == ("x",)
    assert "could not be copied" in capsys.readouterr().out


def test_a_domain_with_one_case_is_allowed_and_reported(folders, capsys):
    write(folders[0], {"a": "x", "b": "x", "c": "x", "d": "y"})
    assert read_domains(*folders, CASES).names == ("x", "y")
    assert "there is a single case from y" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict.fromkeys("ab", "x"), "case 'c' and 1 more are without a domain. Add every training case"),
        (dict.fromkeys("abc", "x"), "case 'd' is without a domain"),
        (dict.fromkeys("abcde", "x"), "case 'e' is not in the dataset. Remove"),
        ({"a": 1}, 'must look like {"case": "domain", ...}'),
        ({"a": ""}, "at least 1 character"),
        (["a"], "must look like"),
        (None, "must look like"),
        ("{", "not valid JSON, or cut off"),
        ('{"a": "x", "a": "y"}', "the key 'a' appears more than once"),
        ("\0\0\0", "NUL bytes"),
    ],
)
def test_errors_name_the_file_and_the_fault(folders, content, message):
    write(folders[0], content)
    with pytest.raises(ValueError, match=r"domains\.json") as error:
        read_domains(*folders, CASES)
    assert message in str(error.value)


def test_a_file_that_exists_but_cannot_be_read_is_an_error(folders):
    path = folders[1] / "domains.json"
    path.symlink_to("/nowhere/domains.json")
    with pytest.raises(DataError, match="link to /nowhere"):
        read_domains(None, folders[1], CASES)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="a folder"):
        read_domains(None, folders[1], CASES)


def test_no_domain_name_equals_having_no_domains(folders):
    without = read_domains(*folders, CASES)
    write(folders[0], dict.fromkeys(CASES, "all"))
    assert read_domains(*folders, CASES).names == ("all",) != without.names


def test_the_copy_is_as_readable_as_its_folder(folders):
    folders[1].chmod(0o775)
    write(folders[0], dict.fromkeys(CASES, "Z\u00fcrich"))
    read_domains(*folders, CASES)
    copy = folders[1] / "domains.json"
    assert copy.stat().st_mode & 0o662 == 0o660  # writable for the group, but not for all users
    assert copy.read_bytes() == (folders[0] / "domains.json").read_bytes()
    assert [path.name for path in folders[1].iterdir()] == ["domains.json"]


def test_control_characters_in_domain_names_are_escaped(folders, capsys):
    write(folders[0], dict.fromkeys("abc", "x") | {"d": "\x1b[31mred\n"})
    read_domains(*folders, CASES)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"\x1b[31mred\n" in printed
