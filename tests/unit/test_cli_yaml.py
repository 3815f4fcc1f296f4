"""YAML with positions: what kubectl reads, the lines of fields, and files that try to break the reader."""

from __future__ import annotations

import json
import random

import pytest

from medley_operator.cli.yaml_documents import MAX_DEPTH, MAX_SLOWLY_READ_CHARACTERS, DocumentError, documents


def only(text: str) -> object:
    (document,) = documents(text)
    return document.value


def refused(text: str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        list(documents(text))
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("0x1F", 31),
        ("010", 8),
        ("0o10", 8),
        ("1_000", 1000),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        (".5", 0.5),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("2026-05-01", "2026-05-01"),
        ("12:30:00", "12:30:00"),
        ("1.2.3", "1.2.3"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("|-\n  two\n  lines", "two\nlines"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(written: str, value: object) -> None:
    read = only(f"field: {written}\n")
    assert read == {"field": value}
    assert isinstance(read, dict)
    assert type(read["field"]) is type(value)


def test_what_json_escapes_as_two_halves_is_one_character() -> None:
    assert only(json.dumps({"🚀": "a🚀b"})) == {"🚀": "a🚀b"}


def test_a_large_file_is_read_like_a_small_one() -> None:
    value = {"🚀": ["a🚀b", "\\ud83d\\ude00", "\\\\", "é"], "more": ["x" * 1000] * 300}
    assert only(json.dumps(value)) == value
    assert len(json.dumps(value)) > MAX_SLOWLY_READ_CHARACTERS
    assert "flow sequence" in refused(json.dumps(value)[:-2] + "}").message


def test_half_a_character_is_refused() -> None:
    error = refused('{"a":\n "\\ud83d"}')
    assert (error.line, error.message) == (2, "half of a surrogate pair is not a character")


def test_keys_are_strings() -> None:
    assert only("1: a\ntrue: b\n") == {"1": "a", "true": "b"}


def test_json_is_yaml() -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {"c": []}}
    assert only(json.dumps(value, indent=1)) == value


def test_anchors_and_merges() -> None:
    assert only("base: &b {x: 1, y: 2}\nmade:\n  <<: *b\n  y: 3\n") == {
        "base": {"x": 1, "y": 2},
        "made": {"x": 1, "y": 3},
    }


def test_documents_are_told_apart_and_empty_ones_left_out() -> None:
    assert [document.value for document in documents("---\na: 1\n---\n---\n# nothing\n---\nb: 2\n")] == [
        {"a": 1},
        {"b": 2},
    ]


def test_lines_of_fields_and_of_what_is_missing() -> None:
    text = "# a comment\nspec:\n  gpus:\n    pools:\n    - l4\n    - a100\n  rate: 3\n"
    (document,) = documents(text)
    assert document.line_of(("spec", "gpus", "pools", 1)) == 6
    assert document.line_of(("spec", "rate")) == 7
    assert document.line_of(("spec", "gpus", "maxCostPerHour")) == 3
    assert document.line_of(("metadata", "name")) == 2


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected"),
        ("a: 1\na: 2\n", 2, "given twice"),
        ("a:\n  - b: {c: 1, c: 2}\n", 2, "given twice"),
        ("a: .nan\n", 1, "not a number in JSON"),
        ("a: .inf\n", 1, "not a number in JSON"),
        ("a: " + "9" * 5000 + "\n", 1, "5000 characters"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: !!binary aGk=\n", 1, "tag"),
        ("a: !!set {x, y}\n", 1, "tag"),
        ("? [1, 2]\n: a\n", 1, "plain strings"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: &a [*a]\n", 1, "contains itself"),
        ("a: &a {b: *a}\n", 1, "contains itself"),
        ("a:\n\tb: 1\n", 2, "cannot start any token"),
        ("ok: 1\na: \x07\n", 2, "U+0007"),
        ("<<: 3\n", 1, "only a mapping"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, words: str) -> None:
    error = refused(text)
    assert error.line == line
    assert words in error.message


def test_deep_nesting_is_refused_before_it_exhausts_the_stack() -> None:
    for text in ("[" * 100_000, "- " * 100_000 + "x", "a: " + "{b: " * 5_000):
        assert f"deeper than {MAX_DEPTH}" in refused(text).message


def test_aliases_cannot_multiply_without_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    assert "its aliases add more than 20,000 values" in refused("\n".join(lines)).message


def test_a_large_file_is_no_repetition() -> None:
    many = "\n---\n".join("a: [" + "1," * 5_000 + "]" for _ in range(10))
    assert len(list(documents(many))) == 10


def test_an_alias_is_what_it_stands_for() -> None:
    assert only("a: &x [1, {b: 2}]\nc: *x\nd: [*x, *x]\n") == {
        "a": [1, {"b": 2}],
        "c": [1, {"b": 2}],
        "d": [[1, {"b": 2}], [1, {"b": 2}]],
    }


def test_random_bytes_never_do_more_than_be_refused() -> None:
    seed = 11
    rng = random.Random(seed)
    alphabet = "abc:-[]{}&*!|>'\"#%@`,?\n\t \u00e9\u2028<=~0123456789.\x00\ufffe"
    for round_number in range(2_000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60)))
        try:
            for document in documents(text):
                json.dumps(document.value)
        except DocumentError as error:
            assert error.line >= 1, (seed, round_number, text)


@pytest.mark.parametrize("text", ["a: [1", "a: {b: 1\n\n", "a: 'x\n"])
def test_an_error_is_on_a_line_that_is_there(text: str) -> None:
    assert 1 <= refused(text).line <= text.count("\n") + 1
