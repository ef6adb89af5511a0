#!/usr/bin/env bash
# A real SLURM on one machine, for tests: slurmctld, some slurmd under invented node names, munge. As root.
#
#   slurm_local.sh start DIR    writes DIR/slurm.conf, starts the daemons, returns when all nodes are idle
#   slurm_local.sh stop DIR     cancels what runs and ends the daemons that `start` began, and no others
#
# Then: SLURM_CONF=DIR/slurm.conf sbatch ...
# SLURM_NODES (2), SLURM_CPUS (2), SLURM_MEM_MB (8000) and SLURM_GPUS (0) of each node: more than there is may be claimed.
# SLURM_CTLD_PORT (17817) and SLURM_D_PORT0 (17830, one more for each further node).
set -euo pipefail
cmd=${1:?start or stop} dir=$(realpath -m "${2:?a folder for its state}")
nodes=${SLURM_NODES:-2} cpus=${SLURM_CPUS:-2} gpus=${SLURM_GPUS:-0} mem=${SLURM_MEM_MB:-8000}
port=${SLURM_CTLD_PORT:-17817} port0=${SLURM_D_PORT0:-17830}
export SLURM_CONF=$dir/slurm.conf

end() { # pid file, name of the program
  [ -s "$1" ] || return 0
  local pid; pid=$(cat "$1")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null || true)" = "$2" ]; then
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep .1; done
  fi
  rm -f "$1"
}

if [ "$cmd" = stop ]; then
  scancel --user="$(id -un)" 2>/dev/null || true
  sleep .5
  for i in $(seq 0 $((nodes - 1))); do end "$dir/slurmd-n$i.pid" slurmd; done
  end "$dir/slurmctld.pid" slurmctld
  end "$dir/munged.pid" munged
  exit 0
fi
[ "$cmd" = start ] || { echo "start or stop" >&2; exit 2; }

mkdir -p "$dir"/{spool,ctld,log}
(umask 077; head -c 128 /dev/urandom >"$dir/munge.key")
chmod 400 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
       --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
for _ in $(seq 50); do [ -S "$dir/munge.sock" ] && break; sleep .1; done

host=$(hostname -s) last=$((nodes - 1))
names=$(seq -s, -f 'n%g' 0 $last)
{
cat <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
CredType=cred/munge
StateSaveLocation=$dir/ctld
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,batch_sched_delay=0,sched_interval=1
ReturnToService=2
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
MinJobAge=300
SlurmdParameters=config_overrides
DefMemPerCPU=500
CONF
[ "$gpus" -eq 0 ] || echo GresTypes=gpu
for i in $(seq 0 $last); do
  gres=""; [ "$gpus" -eq 0 ] || gres="Gres=gpu:$gpus"
  echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port0 + i)) CPUs=$cpus RealMemory=$mem $gres State=UNKNOWN"
done
echo "PartitionName=debug Nodes=$names Default=YES MaxTime=INFINITE State=UP"
} >"$SLURM_CONF"
if [ "$gpus" -gt 0 ]; then # pretended: any character device will do
  for i in $(seq 0 $((gpus - 1))); do [ -e "/dev/tty$i" ] || mknod "/dev/tty$i" c 4 "$i"; done
  file=/dev/tty0; [ "$gpus" -eq 1 ] || file="/dev/tty[0-$((gpus - 1))]"
  printf 'AutoDetect=off\nNodeName=%s Name=gpu File=%s\n' "$names" "$file" >"$dir/gres.conf"
fi

slurmctld -f "$SLURM_CONF" -c
for i in $(seq 0 $last); do mkdir -p "$dir/spool/n$i"; slurmd -f "$SLURM_CONF" -N "n$i"; done
for _ in $(seq 100); do
  [ "$(sinfo -h -N -o '%T' 2>/dev/null | sort -u)" = idle ] && exit 0
  sleep .2
done
echo "the nodes did not become idle; see $dir/log" >&2
exit 1
