#!/usr/bin/env bash
# A real Slurm of one machine, for tests: munged, slurmctld and slurmd with all their state in one folder.
#
#   tests/slurm.sh install        slurm-wlm and munge from Debian's or Ubuntu's packages (as root)
#   tests/slurm.sh start FOLDER   starts them (as root); then export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm.sh stop FOLDER
#
# Two partitions: `low`, whose jobs are requeued for those of `high`. A requeued job starts again after
# cred_expire seconds (120 by default, 5 here).
set -euo pipefail

install_packages() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
}

configure() {
  local folder=$1 host cpus memory
  host=$(hostname -s)
  cpus=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  cat >"$folder/slurm.conf" <<END
ClusterName=isoflop
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2
END
}

start() {
  local folder=$1
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder" "$folder/state" "$folder/spool"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 600 "$folder/munge.key"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  configure "$folder"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF"
  for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q '^idle$'; then return 0; fi
    sleep 0.5
  done
  echo "slurm.sh: the node does not come up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
  return 1
}

stop() {
  local folder=$1 name pid
  SLURM_CONF=$folder/slurm.conf timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
  for name in slurmd slurmctld munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true # it waits for a job that does not end
  done
}

case "${1:-}" in
  install) install_packages ;;
  start) start "$(realpath -m "$2")" ;;
  stop) stop "$(realpath -m "$2")" ;;
  *)
    echo "usage: tests/slurm.sh install | start FOLDER | stop FOLDER" >&2
    exit 2
    ;;
esac
