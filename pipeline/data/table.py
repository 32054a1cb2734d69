"""Reads CSV files that people made, in whatever encoding and with whatever separator Excel wrote them."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.stage import Problem

SEPARATORS = ",;\t|"  # Excel takes the one of its country
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls


class Row(NamedTuple):
    """A row's cells, by their column's name in lower case; '' where the row is too short."""

    line: int
    cells: dict[str, str]


def rows(path: Path, columns: Sequence[str], hint: str) -> Iterator[Row]:
    """Yields the rows of a CSV file, one in memory at a time; empty ones, as Excel leaves at the end, are passed over.

    Raises Problem, which ends with the hint, if a column is missing or it is no such file.
    """
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            header, above = file.readline().rstrip("\r\n"), 1
            if header.lower().startswith("sep="):  # a line for Excel alone
                header, above = file.readline().rstrip("\r\n"), 2
            separator = max(SEPARATORS, key=header.count)
            if separator not in header:
                separator = "\x1f"  # one column: a comma is part of a cell
            names = [name.strip().casefold() for name in next(csv.reader([header], delimiter=separator), [])]
            if absent := [name for name in columns if name not in names]:
                raise Problem(f"{path} has no column {', '.join(absent)}; its first line is {header[:200]!r}; {hint}")
            reader = csv.reader(file, delimiter=separator)
            for row in reader:
                if any(cell.strip() for cell in row):
                    cells = dict.fromkeys(names, "") | dict(zip(names, row, strict=False))
                    yield Row(above + reader.line_num, cells)
    except (UnicodeError, csv.Error) as error:
        raise Problem(f"{path} cannot be read as a table ({error}). Save it as CSV, UTF-8; {hint}") from error


def _encoding(path: Path) -> str:
    """UTF-8, with a mark before it or not; UTF-16; or else what Excel writes in Western Europe."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in WORKBOOKS:
        raise Problem(f"{path} is a workbook. Save it as CSV (in Excel: CSV UTF-8).")
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if b"\0" in head[:2]:
        return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    try:
        with path.open(encoding="utf-8") as text:
            while text.read(2**20):
                pass
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"
