"""Trains on TPU slices of a GKE cluster, by xpk.

  ./launch.sh gke run NAME configs/cifar10.py --cluster=C --zone=us-central1-a --type=v5litepod-16 [--slices=2]
  ./launch.sh gke list --cluster=C --zone=us-central1-a
  ./launch.sh gke delete NAME --cluster=C --zone=us-central1-a

--workdir must be on a disk that all pods mount, such as storage attached by `xpk storage attach`. A pod
that exits with code 75 was preempted and has saved: it is restarted, at most --restarts times. --dry_run prints the
commands.
"""
import argparse

from experiments.launchers import Command, LaunchError, main, name, run, training, whole

_INSTALL = "Install it: pip install xpk"
_SETUP = "pip install --quiet -e .[tpu] -c constraints.txt"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="./launch.sh gke", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("action", choices=["run", "list", "delete"])
    p.add_argument("name", type=name, nargs="?", help="the workload's name: lower case letters, digits and hyphens")
    p.add_argument("config", nargs="?", default="configs/digits.py", help="run: the config file (%(default)s)")
    p.add_argument("--cluster", required=True)
    p.add_argument("--zone", required=True)
    p.add_argument("--project", default="", help="default: gcloud's own")
    p.add_argument("--type", default="v5litepod-16", help="run: the accelerator type of a slice (%(default)s)")
    p.add_argument("--slices", type=whole, default=1, help="run: the number of slices (%(default)s)")
    p.add_argument("--image", default="python:3.12", help="run: the base image for this checkout (%(default)s)")
    p.add_argument("--restarts", type=whole, default=100, help="run: most restarts after preemptions (%(default)s)")
    p.add_argument("--dry_run", action="store_true", help="only print the commands")
    return p


def commands(args: argparse.Namespace, flags: list[str]) -> list[Command]:
    where = [f"--cluster={args.cluster}", f"--zone={args.zone}",
             *([f"--project={args.project}"] if args.project else [])]
    if args.action == "list":
        return [["xpk", "workload", "list", *where]]
    if args.name is None:
        raise LaunchError(f"{args.action} needs the name of a workload: ./launch.sh gke {args.action} NAME")
    if args.action == "delete":
        return [["xpk", "workload", "delete", f"--workload={args.name}", *where]]
    return [["xpk", "workload", "create", f"--workload={args.name}", *where, f"--tpu-type={args.type}",
             f"--num-slices={args.slices}", f"--base-docker-image={args.image}", "--script-dir=.",
             f"--max-restarts={args.restarts}", "--restart-on-exit-codes=75",
             f"--command={_SETUP} && {training(args.config, flags)}"]]


def launch(argv: list[str]) -> None:
    args, flags = parser().parse_known_args(argv)
    run(commands(args, flags), args.dry_run, _INSTALL)


if __name__ == "__main__":
    main(launch)
