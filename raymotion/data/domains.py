"""Domains of a sample table: the rows whose text column has one value, such as `source=socratis/visualnews`.

A model that is used on collections it never saw has to be tested on a domain it never saw; a random test split tells
how good it is at home.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raymotion.errors import InputError, guess

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# Recipes, which the command line reads first, import this file: no pyarrow here.

MOST_NAMED = 12  # values listed in a message


def parse_domain(text: str) -> tuple[str, str]:
    """Returns column and value of `COLUMN=VALUE`.

    Raises:
        InputError: the text has another form.
    """
    column, equals, value = text.partition("=")
    if not (equals and column.strip() and value.strip()):
        raise InputError(f"the domain {text!r} is not of the form COLUMN=VALUE", remedy="Write source=my-set.")
    return column.strip(), value.strip()


def domain_values(table: pa.Table, column: str, *, where: object) -> dict[str, int]:
    """Counts the values of a text column, the most frequent first; rows without a value are not counted.

    Raises:
        InputError: there is no such column, it holds no texts, or no row has a value.
    """
    import pyarrow as pa

    texts = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    if column not in texts:
        held = "holds no texts" if column in table.column_names else "is not there"
        raise InputError(
            f"the column {column!r} {held}",
            path=where,
            remedy=f"{guess(column, texts)} Columns that may name domains: {', '.join(texts)}.".lstrip(),
        )
    counts = Counter(table.column(column).drop_null().to_pylist())
    if not counts:
        raise InputError(f"no row has a value in the column {column}", path=where, remedy="Name another column.")
    return dict(counts.most_common())


def rows_of_domains(table: pa.Table, domains: Sequence[str], *, where: object) -> np.ndarray:
    """Returns which rows are in any of the domains, each `COLUMN=VALUE`, bool (rows,).

    Raises:
        InputError: a column is unknown, or no row has the value; names the values there are, with their counts.
    """
    import numpy as np
    import pyarrow.compute as pc

    found = np.zeros(table.num_rows, dtype=bool)
    for text in domains:
        column, value = parse_domain(text)
        counts = domain_values(table, column, where=where)
        if value not in counts:
            named = [f"{own} ({count:,})" for own, count in list(counts.items())[:MOST_NAMED]]
            more = f" and {len(counts) - MOST_NAMED:,} more" if len(counts) > MOST_NAMED else ""
            raise InputError(
                f"no row has {column} = {value!r}",
                path=where,
                remedy=f"{guess(value, counts)} There are {', '.join(named)}{more}.".lstrip(),
            )
        found |= np.asarray(pc.fill_null(pc.equal(table.column(column), value), False))
    return found


def hold_out(table: pa.Table, domains: Sequence[str], *, where: object) -> tuple[pa.Table, dict[str, int]]:
    """Makes domains the test split of a table, and removes what would blur the border.

    Every row of the domains is in the split `test`, whatever it was in. Of the other rows, those of the split `test`
    and those of an image that is in the domains too are removed.

    Returns:
        The table, and the numbers of removed rows: `test_of_other_domains` and `images_held_out`.

    Raises:
        InputError: as `rows_of_domains`.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    held = rows_of_domains(table, domains, where=where)
    groups = table.column("group_id")
    shared = ~held & np.asarray(pc.is_in(groups, value_set=pc.unique(groups.filter(pa.array(held)))))
    tested = ~held & ~shared & np.asarray(pc.fill_null(pc.equal(table.column("split"), "test"), False))
    split = pc.if_else(pa.array(held), "test", table.column("split"))
    place = table.schema.get_field_index("split")
    kept = table.set_column(place, table.schema.field("split"), split).filter(pa.array(~shared & ~tested))
    return kept, {"test_of_other_domains": int(tested.sum()), "images_held_out": int(shared.sum())}
