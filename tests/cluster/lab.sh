#!/usr/bin/env bash
# Several hosts on one Linux machine, for tests: network namespaces behind one switch.
#
#   lab.sh up [N]              make node1 ... nodeN (3); what was up before is removed
#   lab.sh down                remove everything; does no harm when nothing is up
#   lab.sh exec NODE CMD ...   run a command there, in this folder; its exit status
#   lab.sh pid NODE            process 1 of the node, as this machine numbers it
#   lab.sh rate NODE RATE      limit the node's link, both ways (1gbit, 100mbit; off)
#   lab.sh cut|heal NODE       unplug its cable, plug it in
#   lab.sh firewall NODE       let only ssh in from other hosts; "open NODE" ends that
#   lab.sh crash|boot NODE     power off; on again
#   lab.sh ssh-off|ssh-on NODE
#
# Each host has its own network, name, processes, /tmp, /dev/shm and /etc/hosts, and an
# sshd that knows this lab's key alone. Other files are this machine's, as if shared.
# This machine gets no interface, address, route or file outside of the state folder. A
# lab is a few processes: when they are gone, so is all of it, after NETLAB_TTL seconds
# at the latest. NETLAB is the state folder, one for each of several labs at once.
# NETLAB_KEEP lists folders below /tmp that the hosts see, separated by colons.
#
# Signals don't pass through exec: send them to the process itself.
# Exit status 69: this machine can't do it, with the reason on standard error.
set -euo pipefail

state=${NETLAB:-/run/fastserve-lab}
subnet=10.77.0
self=$(readlink -f "$0")
checkout=${self%/tests/cluster/*}

fail() { echo "lab.sh: $2" >&2; exit "$1"; }

is_up() {
    [ -s "$state/$1.pid" ] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$(<"$state/$1.pid")/cmdline" | grep -q "_live $state $1 "
}

pid() { is_up "$1" || fail 69 "$1 is not up"; cat "$state/$1.pid"; }

in_network() { local of; of=$(pid "$1"); shift; nsenter -t "$of" -n -- "$@"; }

in_node() {
    local of; of=$(pid "$1"); shift
    nsenter -t "$of" -m -u -i -n -p -- sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

# The first process of a node, or the one that holds the switch's namespace.
begin() { # NAME FLAGS-OF-UNSHARE ...
    local name=$1; shift
    # a session of its own: Ctrl-C at a test must not reach it
    setsid unshare "$@" --fork --kill-child=KILL \
        bash "$self" _live "$state" "$name" "${NETLAB_TTL:-7200}" </dev/null >"$state/$name.log" 2>&1 &
    for _ in $(seq 200); do
        pgrep -P $! >"$state/$name.pid" && is_up "$name" && return
        sleep 0.03
    done
    fail 70 "$name does not start: see $state/$name.log"
}

live() { # NAME SECONDS; runs as process 1
    trap : CHLD HUP INT
    if [ "$1" != switch ]; then
        furnish "$1"
    fi
    while [ "$SECONDS" -lt "$2" ]; do sleep 20 & wait $! || :; done
}

furnish() {
    hostname "$1"
    ip link set lo up
    mount --bind "$state/hosts" /etc/hosts
    mount --bind "$state/ssh_config" /etc/ssh/ssh_config
    for file in ~/.bashrc ~/.ssh/config; do
        if [ -e "$file" ]; then mount --bind /dev/null "$file"; fi
    done
    mount -t sysfs sysfs /sys  # lists this network's interfaces, which MPICH's UCX reads
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    own_tmp "$state/$1.tmp"
    mkdir -p /run/sshd
    until ip -o addr show dev eth0 2>/dev/null | grep -q "$subnet"; do sleep 0.03; done
    login_server "$1" env
}

own_tmp() { # FOLDER: /tmp of this node, which still shows what has to be seen
    mkdir -p "$1"
    mount -t tmpfs -o mode=1777 tmpfs "$1"
    local kept
    tr ':' '\n' <<<"${NETLAB_KEEP:-}:$state:$checkout" | while read -r kept; do
        case $kept in /tmp/*)
            mkdir -p "$1/${kept#/tmp/}"
            mount --bind "$kept" "$1/${kept#/tmp/}" ;;
        esac
    done
    mount --rbind "$1" /tmp
}

login_server() { # NODE, COMMAND that runs the rest in it ...
    local node=$1; shift
    "$@" /usr/sbin/sshd -f "$state/sshd_config" -o "PidFile=$state/$node.sshd" -E "$state/$node.sshd.log"
}

node() { # NUMBER: start it and plug its cable in
    local of
    begin "node$1" --net --uts --ipc --mount --pid --mount-proc
    of=$(pid "node$1")
    # with an address of its own, also after a boot: others remember it
    in_network switch ip link add "port$1" type veth \
        peer name eth0 address "02:00:00:00:00:$(printf %02x "$1")" netns "$of"
    in_network switch ip link set "port$1" master bridge up
    in_network "node$1" ip addr add "$subnet.$1/24" dev eth0
    in_network "node$1" ip link set eth0 up
}

answers() { # NODE: wait until node1 can log in there
    timeout 10 bash "$self" exec node1 \
        sh -c "until ssh -o ConnectTimeout=1 $1 true 2>/dev/null; do sleep 0.05; done" ||
        fail 70 "$1 does not let ssh in: see $state/$1.sshd.log"
}

up() { # NUMBER OF NODES
    local count=$1 i
    for program in ip tc iptables unshare nsenter pgrep ssh ssh-keygen /usr/sbin/sshd; do
        command -v "$program" >/dev/null || fail 69 "needs $program"
    done
    [ "$(id -u)" = 0 ] || fail 69 "needs root, to make network namespaces"
    unshare --net --uts --ipc --mount --pid --fork true 2>/dev/null ||
        fail 69 "may not make namespaces here"
    down
    mkdir -p "$state"
    chmod 700 "$state"
    write_settings "$count"
    begin switch --net
    in_network switch ip link add bridge type bridge
    in_network switch ip link set bridge up
    for i in $(seq "$count"); do node "$i"; done
    for i in $(seq "$count"); do answers "node$i"; done
}

write_settings() { # NUMBER OF NODES
    local i
    for key in user host; do ssh-keygen -q -t ed25519 -N '' -C lab -f "$state/$key"; done
    echo "127.0.0.1 localhost" >"$state/hosts"
    for i in $(seq "$1"); do
        echo "$subnet.$i node$i" >>"$state/hosts"
        echo "node$i,$subnet.$i $(cut -d' ' -f1,2 "$state/host.pub")" >>"$state/known_hosts"
    done
    cat >"$state/sshd_config" <<END
HostKey $state/host
AuthorizedKeysFile $state/user.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
END
    cat >"$state/ssh_config" <<END
IdentityFile $state/user
IdentitiesOnly yes
UserKnownHostsFile $state/known_hosts
GlobalKnownHostsFile none
StrictHostKeyChecking yes
LogLevel ERROR
END
}

down() {
    local file name
    for file in "$state"/*.pid; do
        [ -e "$file" ] || continue
        name=$(basename "$file" .pid)
        if is_up "$name"; then power_off "$name"; fi
    done
    if [ -e "$state/sshd_config" ]; then rm -rf "$state"; fi
}

power_off() { # a dead process 1 takes processes, mounts and interfaces along
    local of; of=$(<"$state/$1.pid")
    kill -KILL "$of"
    # it has no command line any more long before the last of its processes is gone
    while [ -e "/proc/$of" ]; do sleep 0.02; done
}

cable() { in_network switch ip link set "port${1#node}" "$2"; }

rate() { # NODE RATE: at both ends; a burst holds what a timer tick of 4 ms lets through
    local place=$1 device=eth0
    for _ in 1 2; do
        in_network "$place" tc qdisc del dev "$device" root 2>/dev/null || :
        if [ "$2" != off ]; then
            in_network "$place" tc qdisc add dev "$device" root tbf rate "$2" burst 512kb latency 20ms
        fi
        place=switch device=port${1#node}
    done
}

firewall() {
    in_network "$1" iptables-restore <<END
*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp --dport 22 -j ACCEPT
-A INPUT -p tcp --sport 22 -j ACCEPT
COMMIT
END
}

open() {
    in_network "$1" iptables -P INPUT ACCEPT
    in_network "$1" iptables -F
}

case ${1:-} in
    up) up "${2:-3}" ;;
    down) down ;;
    exec) shift; in_node "$@" ;;
    pid | firewall | open) "$1" "$2" ;;
    rate) rate "$2" "$3" ;;
    cut) cable "$2" down ;;
    heal) cable "$2" up; sleep 1.2 ;; # the kernel looks at links once a second
    crash) cable "$2" down; power_off "$2" ;;
    boot)
        # the kernel takes the old cable away some time after the node's end
        in_network switch ip link del "port${2#node}" 2>/dev/null || :
        node "${2#node}"
        answers "$2"
        ;;
    ssh-off)
        in_node "$2" sh -c 'kill "$0"; while kill -0 "$0" 2>/dev/null; do sleep 0.02; done' \
            "$(<"$state/$2.sshd")"
        ;;
    ssh-on)
        login_server "$2" in_node "$2"  # which goes into the background before it listens
        answers "$2"
        ;;
    _live) state=$2; live "$3" "$4" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$self"; exit 64 ;;
esac
