#!/usr/bin/env bash
# Installs what the tests over several hosts need, npm for the real data sets, and a
# browser for the tests of reports, on a Debian machine, as root.
# No service is started or left running: the tests start their own.
set -euo pipefail

wanted=()
while read -r program package; do
    command -v "$program" >/dev/null || wanted+=("$package")
done <<END
ip iproute2
iptables iptables
pgrep procps
ssh openssh-client
/usr/sbin/sshd openssh-server
slurmctld slurm-wlm
munged munge
npm npm
chromium chromium
END
if [ ${#wanted[@]} = 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "expected root and apt-get, to install ${wanted[*]}" >&2
    exit 1
fi
echo "installing ${wanted[*]}"
policy=/usr/sbin/policy-rc.d  # what Debian asks before a package starts its service
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends "${wanted[@]}" >/dev/null
