"""A whole lesson and the set-up's training, alone and beside one busy process: by default and as we set it.

Takes a quarter of an hour, most of it by default beside a busy process. It goes on where it was interrupted:
see `resume`.
"""

import subprocess
import sys
import time

import psutil

from authoring import bench as benches
from authoring.bench import waiting
from authoring.project import Project
from course_utils.errors import CourseError

TITLE = "How threads wait: seconds of a whole lesson and of the set-up's training, idle and beside others"
LESSONS, STEPS = ("one_token",), 40
SETTINGS = {"default": waiting.CANDIDATES[waiting.DEFAULT], "the course's": {}}
TRAINING = "set-up"


def bench() -> list[dict]:
    """One row for each work, setting and number of busy processes."""
    runs = {(work, setting, busy): {"what": work, "waiting": setting, "busy processes": busy}
            for work in (TRAINING, *LESSONS) for busy in (0, 1) for setting in SETTINGS}
    return benches.resume("bench_waiting_lessons", TITLE, runs, measure)


def measure(work: str, setting: str, busy: int) -> dict:
    """One run of the work in a fresh process, beside so many busy ones.

    Returns:
        {"seconds": from the start of its process to the end, "cores of other programs": how many of the
        machine's cores other programs took meanwhile, on average}.

    Raises:
        CourseError: the lesson or the training failed.
    """
    training = ("from course_utils import data, finetune, models\n"
                "finetune.train(*models.load_encoder(num_labels=2), data.reviews('train', 'movie'), "
                f"steps={STEPS})")
    program = ["-c", training] if work == TRAINING else ["-m", "authoring.cli", "run", work]
    with waiting.busy(busy) as started:
        ours = [psutil.Process(), *started]
        before, start = waiting.cpu_of_others(ours), time.perf_counter()
        done = subprocess.run([sys.executable, *program], cwd=Project().root, capture_output=True, text=True,
                              env=waiting.environment(SETTINGS[setting]))
        seconds = time.perf_counter() - start
        others = (waiting.cpu_of_others(ours) - before) / seconds
    if done.returncode:
        raise CourseError(f"{work} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return {"seconds": seconds, "cores of other programs": others}
