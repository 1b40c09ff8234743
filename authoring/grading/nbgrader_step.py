"""A step of `nbgrader autograde` that stands in for executing the notebook: only the answers run, bound."""

from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import is_grade
from traitlets import Bool, Unicode

from authoring.grade import Rules, grade_here
from authoring.grading.results import Answer
from authoring.grading.submissions import Submission
from authoring.project import Project
from course_utils.checking.spec import PASSED


class GradeAnswers(NbGraderPreprocessor):
    """Puts into each check's cell what `course grade` finds; nbgrader reads the points from there."""

    seed = Unicode("", help="draws further cases, which no learner has seen").tag(config=True)
    partial = Bool(False, help="whether an answer right in some cases gets its share").tag(config=True)
    root = Unicode("", help="folder of the course; else the one this is a part of").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Grade a submitted notebook.

        Args:
            nb: the notebook, its checks put back by nbgrader.
            resources: nbgrader's; they say which notebook it is.

        Returns:
            (the notebook without outputs but those of the checks, resources).

        Raises:
            ValueError: it cannot be graded; nbgrader says so and goes on with the next one.
        """
        name = resources["nbgrader"]["notebook"]
        submission = Submission(Path(f"{name}.ipynb"), nbformat.writes(nb))
        root = self.root or str(Project().root)
        graded = grade_here(root, Rules(self.seed, self.partial), submission, name)
        if graded.error:
            raise ValueError(graded.error)
        answers = {f"{cell}-check": answer for cell, answer in graded.answers.items()}
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                if is_grade(cell):
                    cell.outputs = _outputs(answers.get(cell.metadata.nbgrader.grade_id))
        return nb, resources


def _outputs(answer: Answer | None) -> list[NotebookNode]:
    """Outputs from which nbgrader reads the points: an error is none, a number is part of them."""
    if answer is None:
        text = "The lesson has no such exercise."
        return [new_output("error", ename="Unknown", evalue=text, traceback=[text])]
    if answer.status != PASSED and not answer.points:
        first, _, rest = answer.message.partition("\n")
        return [new_output("error", ename=answer.status, evalue=first, traceback=[first, rest])]
    said = [new_output("stream", name="stdout", text=answer.message)]
    if answer.status != PASSED:
        said += [new_output("execute_result", {"text/plain": str(answer.points)}, execution_count=None)]
    return said
