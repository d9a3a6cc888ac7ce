#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for trying sweeps and for tests/runs/test_slurm.py. Debian or Ubuntu, as root.
#
#   scripts/local_slurm.sh up        install what is missing, write the configuration, start the daemons, wait for the node
#   scripts/local_slurm.sh status    exit code 0 if the node takes jobs
#   scripts/local_slurm.sh down      cancel all jobs and stop the daemons; packages and configuration stay
#
# No accounting, no cgroups: it runs in containers too. Each may be called again at any time.
set -euo pipefail

conf=/etc/slurm/slurm.conf
mark="# written by scripts/local_slurm.sh"
state=/var/spool/local-slurm
daemons=(slurmd slurmctld munged)
declare -A pid_files=([slurmd]=$state/slurmd.pid [slurmctld]=$state/slurmctld.pid [munged]=/run/munge/munged.pid)

die() { echo "local_slurm.sh: $*" >&2; exit 1; }

pid_of() { cat "${pid_files[$1]}" 2>/dev/null; }

runs() { local pid; pid=$(pid_of "$1") && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]; }

install_packages() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
}

# Short waits: a requeued job starts after cred_expire seconds (else 120), a killed one is gone after KillWait (else 30).
write_configuration() {
    local hardware
    hardware=$(slurmd -C | head -1)
    mkdir -p "$state/ctld" "$state/d"
    cat >"$conf" <<CONF
$mark
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=60
JobRequeue=1
KillWait=1
CompleteWait=0
MinJobAge=600
$hardware NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
    mkdir -p /run/munge /var/log/munge /var/lib/munge
    chown munge: /run/munge /var/log/munge /var/lib/munge
    chmod 755 /run/munge
    [[ -s /etc/munge/munge.key ]] || mungekey --create
    runs munged || setpriv --reuid munge --regid munge --clear-groups munged
    runs slurmctld || slurmctld
    runs slurmd || slurmd
}

ours() { [[ ! -e $conf ]] || head -1 "$conf" | grep -qF "$mark" || die "$conf belongs to another cluster; not touched"; }

usable() { runs slurmctld && runs slurmd && sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated)'; }

up() {
    [[ $(id -u) == 0 ]] || die "up needs root"
    ours
    install_packages
    if ! usable; then
        write_configuration
        start
    fi
    for _ in $(seq 60); do
        usable && { sinfo; return; }
        scontrol update NodeName="$(hostname -s)" State=RESUME 2>/dev/null || true # after a crash or a change of hardware
        sleep 0.5
    done
    tail -n 20 "$state"/slurm*.log >&2
    die "the node does not come up"
}

down() {
    ours
    if usable; then scancel --user="$(id -un)" --full || true; fi
    for daemon in "${daemons[@]}"; do if runs "$daemon"; then kill "$(pid_of "$daemon")"; fi; done
    for _ in $(seq 40); do
        runs slurmd || runs slurmctld || runs munged || return 0
        sleep 0.25
    done
    die "the daemons do not stop"
}

status() {
    for daemon in "${daemons[@]}"; do echo "$daemon $(runs "$daemon" && echo runs || echo "does not run")"; done
    usable && sinfo && squeue
}

case ${1-} in
    up | down | status) "$1" ;;
    *) die "usage: $0 up | down | status" ;;
esac
