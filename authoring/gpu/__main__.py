"""One step, in this process: python -m authoring.gpu NAME SETTINGS-AS-JSON."""

import sys

from authoring.gpu.plan import STEPS, Settings


def main() -> None:
    """Run the step that the program's arguments name."""
    name, settings = sys.argv[1], Settings.from_json(sys.argv[2])
    if name == "lesson":  # started by the step "lessons", for one notebook
        from authoring.gpu import lessons

        lessons.run_one(settings, *sys.argv[3:6])
        return
    from authoring.gpu.results import Results, versions

    step = STEPS[name]
    module = step.load()
    results = Results(settings.records, step.record, versions(), title=module.TITLE, device=settings.device,
                      small=settings.small)
    module.measure_into(settings, results)


if __name__ == "__main__":
    main()
