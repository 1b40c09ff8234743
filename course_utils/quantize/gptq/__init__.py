"""GPTQ: round one column at a time, and let the columns still to come make up for each rounding error.

Round to nearest makes each weight's error small. What matters is the error of the layer's *output*, and there
errors can cancel: inputs are correlated, so a weight rounded up can be paid for by a neighbour moved down.
Three steps lead to the method, each a function here:

optimal_brain_row   one row, exact and slow: pick a weight, round it, move all others by the best amount,
                    remove it from the inverse Hessian (Optimal Brain Quantizer, arXiv 2208.11580).
column_update       the same step for all rows at once. It needs one order of the columns for all rows, and
                    with a fixed order the inverse Hessians of all steps are rows of one Cholesky factor.
gptq                column after column, scales taken group by group, far columns updated in blocks
                    (arXiv 2210.17323, algorithm 1; reference code IST-DASLab/gptq).

Shapes: weight [out, in] as in nn.Linear, Hessian [in, in] = 2 X^T X / n of the layer's inputs X [n, in]
(`layerwise.Hessian`).

optimal_brain  what is minimised; one row, exactly
columns        all rows at once, column by column: one matrix
whole_model    the linear layers of all blocks
"""

from course_utils.quantize.gptq.columns import (
    ORDERS,
    GPTQWeight,
    column_order,
    column_update,
    gptq,
    inverse_factor,
    without_dead_columns,
)
from course_utils.quantize.gptq.optimal_brain import optimal_brain_row, output_error
from course_utils.quantize.gptq.whole_model import LayerReport, quantize_model

__all__ = [
    "ORDERS", "GPTQWeight", "LayerReport", "column_order", "column_update", "gptq", "inverse_factor",
    "optimal_brain_row", "output_error", "quantize_model", "without_dead_columns",
]  # fmt: skip
