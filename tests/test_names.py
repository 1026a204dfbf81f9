import pytest

from nnunet_dg.names import did_you_mean, file_names, foreign_path, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zürich 北京 [red] $x$", "Zürich 北京 [red] $x$"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("right\u202eleft", r"right\u202eleft"),  # text after it would be shown backwards
        ("line\u2028end", r"line\u2028end"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
    ],
)
def test_control_characters_are_escaped_and_all_others_are_kept(text, shown):
    assert printable(text) == shown
    shown.encode("utf-8")


def test_a_similar_name_is_suggested():
    assert did_you_mean("simens", ["Siemens", "GE"]) == " Did you mean 'Siemens'?"
    assert did_you_mean("Philips", ["Siemens", "GE"]) == ""
    assert did_you_mean("x", []) == ""


def test_file_names_are_plain_and_differ_on_every_file_system():
    names = [
        "worst_A B",
        "worst_A_B",
        "worst_a b",
        "北京",
        "上海",
        "..",
        "../../up",
        "a/b",
        "a\\b",
        "",
        "x" * 500,
        "x" * 501,
    ]
    found = file_names([*names, "worst_A B"])
    assert list(found) == names
    assert found["worst_A B"] == "worst_A_B"
    assert len({name.casefold() for name in found.values()}) == len(names)
    for name in found.values():
        assert name.strip(".")
        assert len(name) < 100
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@pytest.mark.parametrize(
    "text",
    [r"D:\data\case.nii.gz", "D:/data/case.nii.gz", r"\\server\share\case.nii.gz", "/data/case.nii.gz", "case.nii.gz"],
)
def test_windows_and_unix_paths_have_a_file_name(text):
    assert foreign_path(text).name == "case.nii.gz"


def test_a_backslash_in_a_unix_path_is_part_of_a_name():
    assert foreign_path(r"/data/a\b.nii.gz").name == r"a\b.nii.gz"


def test_names_cannot_control_a_terminal():
    assert printable_lines("a\x1b[31m\tb\r\x07\x9b\udcff\u202ec") == r"a\x1b[31m\tb\r\x07\x9b\udcff\u202ec"
    for text in ("Zürich 北京 ±\nline", "[bold]x[/bold]", "\\alpha", "نيم\u200cفاصله"):
        assert printable_lines(text) == text
