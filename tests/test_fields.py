"""Declared settings: the accepted values, the stored form, and the messages for values that are not accepted."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from nnunet_dg.errors import SettingsError
from nnunet_dg.fields import choice, flag, found, number, numbers, probability, subset, text
from nnunet_dg.method import Method, Paper, describe_settings


@dataclass(frozen=True)
class Example(Method):
    """A method without effect.

    Attributes:
        weight: A weight, described
            in two lines.
        share: A share.
        steps: A number of steps, or null.
        p: A probability.
        on: A switch.
        kind: A name.
        scale: A name or null.
        path: A path.
        folder: Contents of a folder.
        parts: Names.
        pair: Two weights.
    """

    key: ClassVar[str] = "example"
    paper: ClassVar[Paper] = Paper("A {Title}", "Ann Ace, Bob Bee", "Journal", 2026, "https://example.org")

    weight: float = number(1.0, 0)
    share: float = number(0.2, above=0, high=0.5)
    steps: int | None = number(None, 1, 10, whole=True, null=True)
    p: float = probability(0.5, 0.99)
    on: bool = flag(True)
    kind: str = choice("a", "b")
    scale: str | None = choice(None, "x", "y")
    path: str | None = text(None, "a path, or null")
    folder: dict[str, Any] | None = found("it is read")  # noqa: RUF009
    parts: tuple[str, ...] = subset("one", "two")
    pair: tuple[float, ...] = numbers((1.0, 2.0), ("first", "second"), "leave it out otherwise")

    def check(self) -> None:
        if self.kind == "b" and not self.on:
            raise SettingsError("kind 'b' needs on.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, r"weight must be a number in \[0, 1e\+06\]; got -1"),
        ({"weight": True}, "weight must be a number"),
        ({"weight": 10**400}, "weight must be a number"),
        ({"weight": float("nan")}, "weight must be a number"),
        ({"weight": None}, "weight must be a number"),
        ({"share": 0}, r"share must be a number in \(0, 0\.5\]; got 0"),
        ({"share": 0.6}, "share must be"),
        ({"steps": 1.5}, r"steps must be a whole number in \[1, 10\], or null; got 1\.5"),
        ({"steps": 11}, "steps must be"),
        ({"p": 1}, r"p must be a probability in \[0, 0\.99\]; got 1"),
        ({"p": "1"}, "p must be"),
        ({"on": 1}, "on must be true or false; got 1"),
        ({"kind": "c"}, "kind must be one of a, b; got 'c'"),
        ({"kind": None}, "kind must be one of a, b; got None"),
        ({"scale": "z"}, "scale must be one of x, y, or null; got 'z'"),
        ({"path": ""}, "path must be a path, or null; got ''"),
        ({"path": "a\0b"}, "path must be"),
        ({"path": 3}, "path must be"),
        ({"folder": "x"}, "folder must be left unset: it is read; got 'x'"),
        ({"parts": ["three"]}, r"parts must be a list of one, two; got \['three'\]"),
        ({"parts": "one"}, "parts must be"),
        ({"pair": [1]}, "pair must be 2 positive numbers, for first, second, each at most 1e"),
        ({"pair": [0, 1]}, "leave it out otherwise"),
        ({"pair": 1}, "pair must be"),
        ({"kind": "b", "on": False}, "kind 'b' needs on"),
    ],
)
def test_an_error_names_the_setting_its_value_and_the_accepted_values(settings, message):
    with pytest.raises(SettingsError, match=message):
        Example(**settings)


def test_values_are_stored_in_one_form():
    example = Example(
        parts=["two", "one", "two"], pair=[3, 4], steps=10, share=0.5, scale="y", path="a", folder={"a": 1}
    )
    assert example.parts == ("one", "two")
    assert example.pair == (3.0, 4.0)
    assert (example.steps, example.share, example.scale, example.path) == (10, 0.5, "y", "a")
    assert example.folder == {"a": 1}
    assert Example() == Example(weight=1.0, p=0.5, steps=None)


def test_settings_are_described_by_their_checks_and_the_docstring():
    rows = {setting.name: setting for setting in describe_settings(Example)}
    assert list(rows) == ["weight", "share", "steps", "p", "on", "kind", "scale", "path", "folder", "parts", "pair"]
    assert rows["weight"].description == "A weight, described in two lines."
    assert rows["p"].accepted == "a probability in [0, 0.99]"
    assert rows["pair"].default == (1.0, 2.0)


def test_a_citation_names_all_authors():
    entry = Example.paper.bibtex("ours2026")
    assert entry.startswith("@inproceedings{ours2026,\n")
    assert "title = {{A {Title}}}" in entry
    assert "author = {Ann Ace and Bob Bee}" in entry
    assert "year = {2026}" in entry
    assert entry.count("{") == entry.count("}")
