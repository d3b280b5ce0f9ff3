"""Exercise 09.6: one Triton program on a matrix whose shape its block does not divide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant


def row_maxima(
    memory: np.ndarray, pid: int, rows: int, columns: int, stride: int, ROWS: int, COLUMNS: int
) -> np.ndarray:
    """max |x| of the rows pid * ROWS …, 0 for rows that are not there."""
    found = np.zeros(ROWS, np.float32)
    for place in range(ROWS):
        row = pid * ROWS + place
        if row < rows:
            found[place] = np.abs(memory[row * stride : row * stride + columns]).max()
    return found


Case = tuple[np.ndarray, int, int, int, int, int, int]


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    def drawn(rows: int, columns: int, stride: int, block: int, width: int, pid: int) -> Case:
        # What lies between the rows, and behind the last one, is someone else's: large numbers.
        memory = rng.uniform(50, 99, (rows + 2 * block + 2) * max(stride, width) + width)
        for row in range(rows):
            start = row * stride
            memory[start : start + columns] = rng.uniform(-9, 3, columns)
        return memory.astype(np.float32), pid, rows, columns, stride, block, width

    yield drawn(5, 6, 9, 4, 8, 1)  # a last block with one row, columns that are no power of two
    yield drawn(4, 8, 8, 4, 8, 0)  # everything fits
    yield drawn(6, 5, 5, 4, 8, 1)  # rows without a gap
    yield drawn(7, 3, 11, 2, 4, 3)
    for _ in range(7):
        columns, block = int(rng.integers(3, 14)), int(2 ** rng.integers(1, 4))
        rows = int(rng.integers(block + 1, 4 * block))
        width = 1 << (columns - 1).bit_length()
        pid = int(rng.integers(0, -(-rows // block)))
        yield drawn(rows, columns, columns + int(rng.integers(0, 4)), block, width, pid)


_LOAD = '''
        def load(offsets, mask, other):
            """tl.load: memory where the mask is true; elsewhere `other`, and nothing is read."""
            return np.where(mask, memory[np.where(mask, offsets, 0)], other)
'''

MASK = Exercise(
    id="09.6",
    title="Loads with a mask",
    minutes=12,
    difficulty=3,
    goal="write a Triton program that reads no byte outside of its matrix",
    stub=f'''
    def row_maxima(memory, pid, rows, columns, stride, ROWS, COLUMNS):
        """float32 [ROWS]: max |x| of rows pid * ROWS …; 0 for rows that are not there."""
{_LOAD}
        ...
    ''',
    solution=f'''
    def row_maxima(memory, pid, rows, columns, stride, ROWS, COLUMNS):
        """float32 [ROWS]: max |x| of rows pid * ROWS …; 0 for rows that are not there."""
{_LOAD}
        row = pid * ROWS + np.arange(ROWS)
        column = np.arange(COLUMNS)
        offsets = row[:, None] * stride + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        x = load(offsets, inside, 0.0)
        return np.abs(x).max(axis=1)
    ''',
    reference=row_maxima,
    generate=_cases,
    bounds=(matches_reference(rtol=1e-6),),
    mutants=(
        Mutant(
            "You did not mask the rows. The last program has more rows than the matrix, and reads "
            "what lies behind it.",
            swap=("(row < rows)[:, None] & (column < columns)[None, :]",
                  "(row > -1)[:, None] & (column < columns)[None, :]"),
        ),
        Mutant(
            "You did not mask the columns. The block is a power of two, the row is not: the rest "
            "belongs to the next row, or to nobody.",
            swap=("(row < rows)[:, None] & (column < columns)[None, :]",
                  "(row < rows)[:, None] & (column > -1)[None, :]"),
        ),
        Mutant(
            "Your mask lets one column too many in. Columns are counted from 0: the last one is "
            "columns - 1.",
            swap=("column < columns", "column <= columns"),
        ),
        Mutant(
            "You filled up with minus infinity. That suits a maximum, but here |x| comes first, "
            "and makes infinity of it. `other` must be neutral for everything that follows.",
            swap=("inside, 0.0)", "inside, -np.inf)"),
        ),
        Mutant(
            "You stepped from row to row by `columns`. In memory rows are `stride` apart; a view "
            "of a wider matrix has gaps between them.",
            swap=("row[:, None] * stride", "row[:, None] * columns"),
        ),
        Mutant(
            "Program `pid` began at row `pid`. Each program takes ROWS rows, so it begins at "
            "pid * ROWS.",
            swap=("pid * ROWS + np.arange(ROWS)", "pid + np.arange(ROWS)"),
        ),
        Mutant(
            "Your mask is true where row *or* column is inside. Both must be.",
            swap=("[:, None] & (column", "[:, None] | (column"),
        ),
        Mutant(
            "You took the largest x, not the largest |x|. A scale must cover negative numbers, "
            "too.",
            swap=("np.abs(x).max(axis=1)", "x.max(axis=1)"),
        ),
    ),
    hints=(
        "A program owns a block of ROWS by COLUMNS places. Which row and column is each of them?",
        "row = pid * ROWS + np.arange(ROWS), column = np.arange(COLUMNS); the offset of a place "
        "is row * stride + column, as [:, None] and [None, :].",
        "The mask is (row < rows)[:, None] & (column < columns)[None, :]. Which `other` changes "
        "no maximum of magnitudes?",
    ),
)  # fmt: skip
