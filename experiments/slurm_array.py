"""Runs a sweep as an array of Slurm jobs, through submitit: each trains once and makes all measurements of it."""
import dataclasses
import shlex

from diffusion.errors import ConfigError
from experiments.jobs import Runner
from experiments.table import ROOT


class Chain:
    """One element of the array. Slurm may end it at any time: it saves, and resumes from the queue."""

    def __init__(self, runner: Runner, training: str):
        jobs = tuple(job for job in runner.sweep.jobs if training in (job.id, job.after))
        self.sweep, self.settings = dataclasses.replace(runner.sweep, jobs=jobs), runner.settings
        self.runner: Runner | None = None

    def __call__(self) -> bool:
        self.runner = Runner(self.sweep, **self.settings)
        return self.runner.run(report=lambda line: print(line, flush=True))

    def checkpoint(self):
        """Called by submitit before a job is preempted or reaches its limit."""
        import submitit
        if self.runner is not None:
            self.runner.stop()
            self.runner.join()
        self.runner = None  # its locks cannot be pickled
        return submitit.helpers.DelayedSubmission(self)


def options_of(text: str) -> dict[str, object]:
    """"partition=gpu gpus=1 time=60" -> submitit's parameters. Raises ConfigError for anything but key=value."""
    found: dict[str, object] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"--slurm takes key=value pairs, such as 'partition=gpu gpus=1 time=60'; got {word!r}.")
        name = {"time": "timeout_min", "gpus": "slurm_gpus_per_task", "cpus": "cpus_per_task"}.get(key, f"slurm_{key}")
        found[name] = int(value) if value.isdecimal() and len(value) < 10 else value
    return found


def submit(runner: Runner, options: str, *, jobs: int) -> list:
    """Submits all unfinished work and returns submitit's jobs, of which `jobs` run at a time. Raises ConfigError
    without submitit, or if Slurm does not answer."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--launcher=slurm needs submitit: pip install 'diffusion[slurm]'.") from error
    sweep = runner.sweep
    trainings = list(dict.fromkeys(job.after or job.id for job in sweep.jobs if not runner.is_done(job)))
    if not trainings:
        print("everything is done")
        return []
    try:
        executor = submitit.AutoExecutor(folder=sweep.folder / "slurm" / "%j", cluster="slurm")
        executor.update_parameters(**{
            "name": sweep.table.name, "timeout_min": 24 * 60, "slurm_array_parallelism": jobs,
            "slurm_setup": [f"export PYTHONPATH={shlex.quote(str(ROOT))}"], **options_of(options)})
        with executor.batch():
            found = [executor.submit(Chain(runner, training)) for training in trainings]
    except (RuntimeError, TypeError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"Slurm did not accept the sweep: {error}") from error
    print(f"{len(found)} jobs, {found[0].job_id} to {found[-1].job_id}; their output is in {sweep.folder / 'slurm'}")
    return found
