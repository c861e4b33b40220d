"""Markdown tables."""

from splice_ff.utils.markdown import markdown_table


def test_cells_cannot_break_the_table():
    table = markdown_table(["name", "value"], [["a|b\nc", 0.123456], [None, 3]], numbers_from=1)
    assert table.splitlines() == ["| name | value |", "| --- | --: |", "| a\\|b c | 0.1235 |", "|  | 3 |"]


def test_columns_line_up_on_a_terminal():
    table = markdown_table(["a", "b"], [["long", 1], ["x", "1|0"]], numbers_from=1, is_padded=True)
    assert table.splitlines() == ["| a    |    b |", "| ---- | ---: |", "| long |    1 |", "| x    | 1\\|0 |"]
