#!/bin/sh
# The command line on two hosts: two network namespaces joined by a cable, one torchrun agent with one process in each.
#
# unshare --map-root-user --net --mount sh two_hosts.sh PYTHON train.py fit ...    two namespaces; needs no privileges
# LOOPBACK=1 sh two_hosts.sh PYTHON train.py fit ...                               two agents on this host instead
#
# Output goes to host0.log and host1.log. The exit status is that of the first host that fails.
python=$1
shift

if [ -n "$LOOPBACK" ]; then
    first=127.0.0.1
else
    set -e
    mount -t tmpfs none /run # the names of the namespaces: in sight of this process and its children only
    mkdir /run/netns
    ip netns add host0
    ip netns add host1
    ip link add cable netns host0 type veth peer name cable netns host1
    for host in 0 1; do
        ip -n host$host address add 10.77.0.1$host/24 dev cable
        ip -n host$host link set lo up
        ip -n host$host link set cable up
    done
    set +e
    first=10.77.0.10
    export GLOO_SOCKET_IFNAME=cable TP_SOCKET_IFNAME=cable
fi

agent() {
    host=$1
    shift
    [ -n "$LOOPBACK" ] || in="ip netns exec host$host"
    exec $in "$python" -m torch.distributed.run --nnodes 2 --node_rank "$host" --nproc_per_node 1 \
        --master_addr $first --master_port "${PORT:-29477}" "$@" >"host$host.log" 2>&1
}

agent 0 "$@" &
zero=$!
agent 1 "$@" &
one=$!
trap 'kill $zero $one' TERM
wait $one
status=$?
[ $status = 0 ] || kill $zero # it would wait five minutes for the other agent
wait $zero && exit $status
