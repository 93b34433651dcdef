"""The table of docs/reliability.md is written part by part."""

from tests.faults.__main__ import BEGIN, DOCS, END, PARTS, Row, merged


def test_rows_of_a_part_replace_its_own_and_stand_in_their_place() -> None:
    table = merged("", "soak", [Row("thirty minutes", 4, "flat")], "on Monday")
    table = merged(
        table, "kills", [Row("of two", 1000, "same bits"), Row("of three", 2, "")], "then"
    )
    assert table.splitlines()[2:] == [
        "| kills | of two | 1,000 | same bits | then |",
        "| kills | of three | 2 |  | then |",
        "| soak | thirty minutes | 4 | flat | on Monday |",
    ]
    assert merged(table, "kills", [Row("of one", 3, "")], "now").splitlines()[2:] == [
        "| kills | of one | 3 |  | now |",
        "| soak | thirty minutes | 4 | flat | on Monday |",
    ]


def test_the_docs_table_is_one_that_it_can_write_again() -> None:
    table = DOCS.read_text().partition(f"{BEGIN}\n")[2].partition(f"\n{END}")[0]
    lines = table.splitlines()[2:]
    assert lines and all(line.split()[1] in PARTS for line in lines)
    unwanted = next(part for part in PARTS if not any(f"| {part} |" in line for line in lines))
    assert merged(table, unwanted, [], "") == table
