#!/usr/bin/env bash
# A Slurm on the hosts of lab.sh, which must be up: slurmctld on node1, slurmd on each.
#
#   slurm.sh up [N]     start it on node1 ... nodeN (3), and wait until all are idle
#   slurm.sh down       stop it; does no harm when nothing runs
#   slurm.sh boot NODE  start it again on a node that has been off
#   slurm.sh conf       the path of slurm.conf, for SLURM_CONF of srun and its relatives
#
# All that it writes is in the folder slurm of the lab's state folder (NETLAB), or in the
# nodes' own /tmp; its processes end with the nodes. FASTSERVE_TEST_LAB is the script of
# the lab, else lab.sh beside this one.
# Exit status 69: this machine can't do it, with the reason on standard error.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
lab=${FASTSERVE_TEST_LAB:-$here/lab.sh}
export NETLAB=${NETLAB:-/run/fastserve-lab}
state=$NETLAB/slurm
export SLURM_CONF=$state/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

fail() { echo "slurm.sh: $2" >&2; exit "$1"; }

on() { "$lab" exec "$@"; }

settings() { # NUMBER OF NODES
    mkdir -p "$state/control"
    (umask 077 && head -c 128 /dev/urandom >"$state/munge.key")
    : >"$state/plugstack.conf"
    echo "CgroupPlugin=cgroup/v1" >"$state/cgroup.conf"  # never used, but looked for
    cat >"$SLURM_CONF" <<END
ClusterName=lab
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/tmp/munge/socket
StateSaveLocation=$state/control
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=5
UnkillableStepTimeout=15
MinJobAge=600
NodeName=node[1-$1] CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=node[1-$1] Default=YES MaxTime=INFINITE State=UP
END
}

serve() { # NODE: the key's daemon and slurmd
    mkdir -p "$state/$1"
    on "$1" sh -c 'mkdir -p /tmp/munge && chmod 755 /tmp/munge &&
        munged --key-file="$0/munge.key" --socket=/tmp/munge/socket --pid-file=/tmp/munge/pid \
            --seed-file=/tmp/munge/seed --log-file=/tmp/munge/log --num-threads=1' "$state" ||
        fail 70 "munged does not start on $1"
    on "$1" slurmd -N "$1" >"$state/$1.out" 2>&1 </dev/null ||
        fail 70 "slurmd does not start on $1: see $state/$1.out"
}

idle() { # NUMBER OF NODES: wait for them
    local i
    for i in $(seq 60); do
        if [ "$(on node1 sinfo -h -t idle -o %D 2>/dev/null)" = "$1" ]; then return; fi
        sleep 0.25
    done
    fail 70 "not all nodes are idle: $(on node1 sinfo -h -N -o '%N %T' 2>&1 | tr '\n' ' ')"
}

up() { # NUMBER OF NODES
    local program i
    for program in slurmctld slurmd munged srun sbatch sinfo; do
        command -v "$program" >/dev/null || fail 69 "needs $program (Debian: slurm-wlm, munge)"
    done
    [ "$(id -u)" = 0 ] || fail 69 "needs root, as the lab does"
    "$lab" pid "node$1" >/dev/null || fail 69 "needs a lab of $1 nodes: $lab up $1"
    down
    settings "$1"
    for i in $(seq "$1"); do serve "node$i"; done
    on node1 slurmctld >"$state/slurmctld.out" 2>&1 </dev/null ||
        fail 70 "slurmctld does not start: see $state/slurmctld.out"
    idle "$1"
}

down() {
    local file
    [ -e "$SLURM_CONF" ] || return 0
    for file in "$state"/node*.out; do
        file=$(basename "$file" .out)
        if "$lab" pid "$file" >/dev/null 2>&1; then
            on "$file" pkill -KILL -x 'slurmctld|slurmd|slurmstepd|munged' || :
        fi
    done
    rm -rf "$state"
}

case ${1:-} in
    up) up "${2:-3}" ;;
    down) down ;;
    boot) serve "$2" ;;
    conf) echo "$SLURM_CONF" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$(readlink -f "$0")" | sed '$d'; exit 64 ;;
esac
