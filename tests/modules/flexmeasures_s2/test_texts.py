"""What a peer says is shown on one line, printable, and cut."""

import logging

import pytest

import flexmeasures_s2.texts as texts


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Battery é 電", "Battery é 電"),
        ("a\nERROR forged", "a\\nERROR forged"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("nul\0", "nul\\x00"),
        ("\u202eleft", "\\u202eleft"),
        (None, ""),
        ("x" * 100, "x" * 80 + "…"),
    ],
)
def test_what_is_quoted_is_one_printable_line(said, shown):
    assert texts.quoted(said) == shown


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("  Home \n battery\t", "Home battery"),
        ("nul\0 and \x1b[31m", "nul and [31m"),
        ("\0\n", ""),
        (None, ""),
        ("abc def", "abc"),
    ],
)
def test_a_label_has_nothing_that_cannot_be_printed(given, label):
    assert texts.label(given, 4 if given == "abc def" else 60) == label


def test_of_a_list_the_first_are_told():
    assert texts.few(["a", "b"]) == "a, b"
    assert texts.few(f"x{number}\n" for number in range(200)) == (
        "x0\\n, x1\\n, x2\\n, x3\\n, x4\\n, and 195 more"
    )
    assert len(texts.few(["x" * 10_000] * 1_000)) < 500


def test_a_line_of_the_log_stays_one_line():
    logger, lines = logging.Logger("here"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    texts.guard(logger)
    texts.guard(logger)
    logger.warning("%s said %d", "a\n2026 ERROR", 3)
    logger.warning("%s", "y" * 5000)
    assert len(logger.filters) == 1
    assert lines[0] == "a\\n2026 ERROR said 3"
    assert len(lines[1]) == texts.MAX_LINE + 1
