#!/usr/bin/env bash
# Usage: ./launch.sh [train] [CONFIG] [FLAGS]    train; the default CONFIG is configs/digits.py
#        ./launch.sh sample [CONFIG] [FLAGS]     draw images from the trained model
#        ./launch.sh test [PYTEST ARGS]          run the tests
#        ./launch.sh slurm | tpu | gke ...       train on a cluster: --help shows the uses, --dry_run the commands
#        ./launch.sh install                     make the environment, and print how to use it without this file
#
# The first use makes a virtual environment in .venv and installs the package with the versions of constraints.txt;
# later uses find it. Your own environment, active (venv, or Conda's except base) or in .venv, is used instead: missing
# or too old packages are installed there, and the others are kept.
# Paths are relative to this file's folder. FLAGS are those of diffusion/main.py: ./launch.sh train --help
#
#   ./launch.sh                                               # 8x8 digits, a few minutes on a laptop
#   ./launch.sh sample --num_samples=256
#   ./launch.sh train configs/cifar10_tiny.py --config.train.batch_size=64 --workdir=runs/small_batch
#   ./launch.sh test tests/theory -x
#   ./launch.sh test -m slow
#   DIFFUSION_EXTRAS=cuda ./launch.sh                         # with another extra of setup.py: cuda, tpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
  echo "error: $1" >&2
  exit 1
}

base_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then echo "$candidate" && return; fi
  done
  fail "Python 3.11 or newer is needed; found: $(python3 --version 2>/dev/null || echo none). \
On Debian: apt-get install python3 python3-venv"
}

usable() { "$1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; }


# ---- The command line ------------------------------------------------------------------------------------------------
case "${1:-}" in
  train | sample | test | install | slurm | tpu | gke) use=$1; shift ;;
  -h | --help | help) sed -n "2,/^set /{/^set /d; s/^# \{0,1\}//; p;}" "$(basename "${BASH_SOURCE[0]}")"; exit ;;
  "" | -* | *.py | *.py:*) use=train ;;
  *) fail "unknown command '$1'. It is train, sample, test, install, slurm, tpu, gke, or a config such as configs/digits.py: see \
./launch.sh --help" ;;
esac


# ---- The environment -------------------------------------------------------------------------------------------------
extras=digits${DIFFUSION_EXTRAS:+,$DIFFUSION_EXTRAS}
if [ "$use" = test ]; then extras+=,test; fi

environment=${VIRTUAL_ENV:-}
if [ -z "$environment" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then environment=${CONDA_PREFIX:-}; fi
if [ -z "$environment" ] || [ "$environment" -ef .venv ]; then environment=.venv; fi
python=$environment/bin/python
stamp=$environment/.diffusion_installed  # identifies the installed packages; written after all of them
ours=.venv/.made_by_launch

# Everything that determines the packages. The extras come last: an environment with more extras also fits.
wanted() { echo "$(cat setup.py constraints.txt | cksum) $PWD $("$python" --version 2>&1) ,$extras,"; }

install() {
  local before
  before=$(cat "$stamp" 2>/dev/null) || true
  rm -f "$stamp"
  if ! "$python" -m pip install --quiet --disable-pip-version-check "$@" -e ".[$extras]"; then
    [ -z "$before" ] || echo "$before" >"$stamp"  # a failed pip changes nothing, unlike a killed one
    fail "pip could not install the packages into $environment: its message is above. The same command tries again."
  fi
  wanted >"$stamp"
}

make_venv() {
  local base
  base=$(base_python)
  "$base" -c "import ensurepip, venv" 2>/dev/null || fail "$base cannot make virtual environments here. \
On Debian: apt-get install python3-venv"
  rm -rf .venv
  mkdir .venv
  touch "$ours"
  "$base" -m venv .venv
}

# A launcher that only prints its commands needs no packages, and the launchers of TPU and GKE never do.
bare=
case "$use" in
  tpu | gke) bare=yes ;;
  slurm) for word; do case "$word" in --dry_run | --help | -h) bare=yes ;; esac; done ;;
esac

if [ -n "$bare" ]; then
  export DIFFUSION_PYTHON=$python
  case "$python" in /*) ;; *) DIFFUSION_PYTHON=$PWD/$python ;; esac
  if ! usable "$python"; then python=$(base_python); fi
elif [ -e "$stamp" ] && [[ "$(cat "$stamp")" == "$(wanted)"* ]]; then
  :  # everything is installed
elif [ "$environment" = .venv ] && { [ -e "$ours" ] || [ ! -e .venv ]; }; then
  # Without a stamp it is unfinished. Without a working pip, the Python that made it is gone.
  if [ ! -e "$stamp" ] || ! "$python" -m pip --version >/dev/null 2>&1; then make_venv; fi
  echo "installing the packages into .venv: about a minute the first time"
  # pip builds in a separate environment, with versions from PIP_CONSTRAINT (from pip 25.3 on the other variable).
  PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt install -c constraints.txt
else
  [ -x "$python" ] || fail "$environment, your environment, holds no bin/python. Deactivate or repair it."
  usable "$python" || fail "Python 3.11 or newer is needed; your environment, $environment, has \
$("$python" --version 2>&1). Deactivate it, and one is made in .venv."
  "$python" -m pip --version >/dev/null 2>&1 || fail "your environment, $environment, has no pip. \
Install it: $python -m ensurepip"
  echo "installing what is missing into your environment, $environment"
  install
fi


# ---- Train, sample ---------------------------------------------------------------------------------------------------
# A run goes to runs/NAME of the config; the same command resumes a stopped run.
if [ "$use" = train ] || [ "$use" = sample ]; then
  config=configs/digits.py flags= named= help=
  case "${1:-}" in -*) ;; *.py | *.py:*) config=$1 named=yes && shift ;; esac
  for flag; do
    case "$flag" in
      -h | -help | --help) help=yes ;;
      --config | --config=* | -config | -config=*) config= ;;
      --workdir=*) if [ -z "$named" ] && [ -e "${flag#*=}/config.json" ]; then config=; fi ;;  # holds its config
    esac
    flags+=$(printf " %q" "$flag")
  done
  "$python" -m diffusion.main ${config:+--config="$config"} --mode="$use" "$@"
  if [ "$use" = train ] && [ -z "$help" ]; then
    if [ -n "$config" ]; then flags=$(printf " %q" "$config")$flags; fi
    echo "  ./launch.sh sample$flags --num_samples=256   # draws more"
    if ! [ "$environment" -ef "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ]; then
      printf 'Commands that begin with python, here and in README.md, need the environment, once in each shell:\n  . %q\n' \
        "$environment/bin/activate"
    fi
  fi
fi


# ---- Test ------------------------------------------------------------------------------------------------------------
# Without arguments: all tests except those marked slow, rare, parity and slurm, see pyproject.toml. One process per
# core takes whole files, since the tests of a file share trained models, in the order of tests/conftest.py; -n 0: no
# extra processes.
if [ "$use" = test ]; then
  exec "$python" -m pytest -n auto --dist=loadfile --no-loadscope-reorder "$@"
fi


# ---- Clusters --------------------------------------------------------------------------------------------------------
# Each launcher is a file of experiments/launchers/, which runs the engine's own commands.
case "$use" in slurm | tpu | gke) exec "$python" -m "experiments.launchers.$use" "$@" ;; esac


# ---- Plain use -------------------------------------------------------------------------------------------------------
# This file is a convenience. For a run it only calls: python -m diffusion.main --config=CONFIG
if [ "$use" = install ]; then
  cat <<END
The package is installed in $environment. Without this file:
  . $environment/bin/activate
  python -m diffusion.main --config=configs/digits.py
  python -m diffusion.main --config=configs/digits.py --mode=sample --num_samples=256
  python -m diffusion.data.prepare --help
  python -m pytest
END
fi
