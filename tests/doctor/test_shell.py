"""Tests of the harness."""

from doctor.shell import rendered


def test_a_screen_shows_what_a_terminal_would_show():
    assert rendered("one\r\n\x1b[31mtw\x1b[0mo\x1b[?25l\r\n", 80) == ["one", "two", ""]
    assert rendered("moving\r\x1b[2Kstill\r\n", 80) == ["still", ""]
    assert rendered("a table\r\nof two\r\x1b[1A\x1b[Jgone", 80) == ["gone"]
    assert rendered("12345678", 5) == ["12345", "678"]
