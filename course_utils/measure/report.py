"""Results side by side."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

pd.set_option("display.max_colwidth", None)  # a sentence in a table is shown whole, not cut after 50 letters


def table(rows: dict[Any, Any] | Iterable[Any]) -> pd.DataFrame:
    """A pandas table of measured results; units are in the column names, values are rounded for reading.

    Args:
        rows: a dict label -> result, or a list of results. A result is anything from this package, a plain
            dict column -> value, or a tuple of these, whose columns are put side by side.

    Returns:
        A row for each result.

    Raises:
        TypeError: something has no row.
        ValueError: the table would be empty.

    Example:
        table({"FP32": (perplexity_of_fp32, bytes_of_fp32), "INT8": (perplexity_of_int8, bytes_of_int8)})
    """
    labels = list(rows) if isinstance(rows, dict) else None
    results = list(rows.values()) if isinstance(rows, dict) else list(rows)
    if not results:
        raise ValueError("a table needs at least one row")
    return pd.DataFrame([_row(result) for result in results], index=labels)


def _row(result: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return result
    if isinstance(result, tuple):
        return {column: value for part in result for column, value in _row(part).items()}
    if hasattr(result, "row"):
        return result.row()
    raise TypeError(f"a row is a result of measure, a dict or a tuple of them, not {type(result).__name__}")
