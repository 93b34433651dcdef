"""The table of docs/reliability.md is written part by part."""

import contextlib
from pathlib import Path

import pytest

from tests.faults import __main__ as faults
from tests.faults import disk
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


def test_the_cases_of_a_full_disk_are_the_commands_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tested(fault: str, *names: str, **counts: str) -> Row:
        for free in (0, 10**9):
            disk.check(lambda: None, ["train"], disk.full(tmp_path, free))
        return Row(fault, 7, "as promised")

    monkeypatch.setenv(disk.TRIED, str(tmp_path / "tried"))
    monkeypatch.setattr(faults, "tested", tested)
    monkeypatch.setattr(disk, "full", lambda folder, free: contextlib.nullcontext())
    assert faults.disks(30, tmp_path).cases == 2
