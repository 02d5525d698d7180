#!/usr/bin/env bash
# A Slurm of one node on this machine, for test_slurm.py: Debian's packages, as root, in a container or a test machine.
#   bash tests/slurm/setup.sh          installs, configures, starts, and waits until the node is idle
#   bash tests/slurm/setup.sh stop
set -euo pipefail

if [ "${1:-}" = stop ]; then
  pkill -x slurmctld || true
  pkill -x slurmd || true
  pkill -x munged || true
  exit
fi

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  apt-get install --yes --quiet slurm-wlm munge
fi

host=$(hostname -s)
mkdir -p /etc/slurm /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/munge
cat >/etc/slurm/slurm.conf <<END
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the credential of its first start has expired.
AuthInfo=cred_expire=10
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
# No cgroups: a container may not have them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=30
MinJobAge=300
ReturnToService=2
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
END

[ -s /etc/munge/munge.key ] || mungekey --create
chown -R munge:munge /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 755 /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- munged
pgrep -x slurmctld >/dev/null || slurmctld
pgrep -x slurmd >/dev/null || slurmd

for _ in $(seq 60); do
  if sinfo --noheader --format=%t 2>/dev/null | grep -qx idle; then
    sinfo
    exit
  fi
  sleep 1
done
sinfo || true
echo "error: the node is not idle after 60 s; see /var/log/slurm" >&2
exit 1
