"""Trains on the VMs of a TPU slice, by gcloud: create or queue it, copy this checkout, install, run, follow, delete.

  ./launch.sh tpu create NAME --zone=us-central1-a --type=v5litepod-16 [--queue] [--spot]
  ./launch.sh tpu copy NAME --zone=us-central1-a              # the committed files, to all workers
  ./launch.sh tpu install NAME --zone=us-central1-a
  ./launch.sh tpu run NAME configs/cifar10.py --zone=us-central1-a --bucket=my-bucket --config.train.batch_size=512
  ./launch.sh tpu logs NAME --zone=us-central1-a
  ./launch.sh tpu status NAME --zone=us-central1-a
  ./launch.sh tpu delete NAME --zone=us-central1-a [--queue]

All workers write checkpoints to one folder: --bucket mounts a Cloud Storage bucket (by gcsfuse) at ~/bucket, and the
run folder is ~/bucket/NAME of the config. --dry_run prints the commands of each step.
"""
import argparse
import shlex
from pathlib import Path

from experiments.launchers import Command, LaunchError, main, name, run, training

_INSTALL = "Install the Google Cloud CLI (cloud.google.com/sdk/docs/install) and run: gcloud auth login"
_VERSIONS = {"v4": "tpu-ubuntu2204-base", "v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5",
             "v6e": "v2-alpha-tpuv6e"}
_ARCHIVE, _LOG = "diffusion.tar.gz", "train.log"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="./launch.sh tpu", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("action", choices=["create", "copy", "install", "run", "logs", "status", "delete"])
    p.add_argument("name", type=name, help="the TPU's name: lower case letters, digits and hyphens")
    p.add_argument("config", nargs="?", default="configs/digits.py", help="run: the config file (%(default)s)")
    p.add_argument("--zone", required=True)
    p.add_argument("--project", default="", help="default: gcloud's own")
    p.add_argument("--type", default="v5litepod-16", help="create: the accelerator type (%(default)s)")
    p.add_argument("--version", default="", help="create: the runtime version (by the type)")
    p.add_argument("--queue", action="store_true", help="create, delete: as a queued resource")
    p.add_argument("--spot", action="store_true", help="create: cheaper, but may be preempted")
    p.add_argument("--bucket", default="", help="run: the bucket for the run folder")
    p.add_argument("--dry_run", action="store_true", help="only print the commands")
    return p


def commands(args: argparse.Namespace, flags: list[str]) -> list[Command]:
    where = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    queue = ["gcloud", "compute", "tpus", "queued-resources"]

    def everywhere(command: str, worker: str = "all") -> Command:
        return [*vm, "ssh", args.name, *where, f"--worker={worker}", f"--command={command}"]

    if args.action == "create":
        version = args.version or _VERSIONS.get(args.type.partition("-")[0], "tpu-ubuntu2204-base")
        spot = ["--spot"] if args.spot else []
        if args.queue:
            return [[*queue, "create", args.name, f"--node-id={args.name}", *where, f"--accelerator-type={args.type}",
                     f"--runtime-version={version}", *spot]]
        return [[*vm, "create", args.name, *where, f"--accelerator-type={args.type}", f"--version={version}", *spot]]
    if args.action == "copy":
        return [["git", "archive", "--format=tar.gz", f"--output={_ARCHIVE}", "HEAD"],
                [*vm, "scp", _ARCHIVE, f"{args.name}:{_ARCHIVE}", *where, "--worker=all"],
                everywhere(f"mkdir -p diffusion && tar -xzf {_ARCHIVE} -C diffusion")]
    if args.action == "install":
        return [everywhere("cd diffusion && DIFFUSION_EXTRAS=tpu ./launch.sh install")]
    if args.action == "run":
        steps = []
        if args.bucket:
            if any(flag.startswith("--workdir") for flag in flags):
                raise LaunchError("--bucket sets the run folder: leave --workdir out.")
            folder = Path(args.config).stem
            steps.append(everywhere("mkdir -p bucket && (mountpoint -q bucket || gcsfuse --implicit-dirs "
                                    f"{shlex.quote(args.bucket)} bucket)"))
            flags = [*flags, f"--workdir=../bucket/{folder}"]
        start = training(args.config, flags, ".venv/bin/python")
        # Detached, so that it survives the end of this connection; the same command resumes a preempted run.
        return [*steps, everywhere(f"cd diffusion && nohup {start} >{_LOG} 2>&1 </dev/null &")]
    if args.action == "logs":
        return [everywhere(f"tail -n 100 -f diffusion/{_LOG}", worker="0")]
    if args.action == "status":
        return [[*vm, "describe", args.name, *where]]
    if args.queue:
        return [[*queue, "delete", args.name, *where, "--force", "--quiet"]]
    return [[*vm, "delete", args.name, *where, "--quiet"]]


def launch(argv: list[str]) -> None:
    args, flags = parser().parse_known_args(argv)
    run(commands(args, flags), args.dry_run, _INSTALL)


if __name__ == "__main__":
    main(launch)
