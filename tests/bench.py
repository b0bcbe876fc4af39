"""Times ADD and DEL of chains of plugins, the way a runtime calls them.

Usage: bench.py CNIBOX-DIR REFERENCE-DIR, inside a private namespace (see bench.sh).
"""

import json
import os
import statistics
import subprocess
import sys
import time

ROUNDS = 25

IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
}
BRIDGE = {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipam": IPAM}
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
TUNING = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400}


def chain(backend):
    """bridge with masquerading, portmap and tuning; the reference here knows no backend."""
    choose = {"ipMasqBackend": backend} if backend else {}
    mapped = {"type": "portmap", "runtimeConfig": PORTS}
    if backend:
        mapped["backend"] = backend
    return [{**BRIDGE, "ipMasq": True, **choose}, mapped, TUNING]


CHAINS = {
    "bridge + host-local": ([BRIDGE], [BRIDGE]),
    "+ ipMasq, portmap, tuning (iptables)": (chain("iptables"), chain(None)),
    "+ ipMasq, portmap, tuning (nftables)": (chain("nftables"), chain(None)),
}


def call(directory, command, plugin, result):
    """One call; answers the result and the milliseconds it took."""
    config = {**plugin, "cniVersion": "1.0.0", "name": "bench"}
    if result is not None:
        config["prevResult"] = result
    env = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "bench",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": directory,
    }
    start = time.perf_counter()
    done = subprocess.run(
        [os.path.join(directory, plugin["type"])],
        input=json.dumps(config).encode(),
        env=env,
        capture_output=True,
        check=False,
    )
    took = (time.perf_counter() - start) * 1000
    if done.returncode != 0:
        sys.exit(f"{directory}/{plugin['type']} {command}: {done.stdout.decode()}{done.stderr.decode()}")
    return json.loads(done.stdout) if done.stdout else result, took


def measure(directory, plugins):
    """Milliseconds of ADD and DEL of the whole chain, one round."""
    result, add, delete = None, 0.0, 0.0
    for plugin in plugins:
        result, took = call(directory, "ADD", plugin, result)
        add += took
    for plugin in reversed(plugins):
        _, took = call(directory, "DEL", plugin, result)
        delete += took
    return add, delete


def main():
    ours, theirs = sys.argv[1:3]
    row = "{:40} {:>12} {:>12} {:>12} {:>12}"
    print(f"median of {ROUNDS} rounds, milliseconds, process start included")
    print(row.format("", "cnibox ADD", "ref. ADD", "cnibox DEL", "ref. DEL"))
    for name, (for_us, for_them) in CHAINS.items():
        rounds = {"ours": [], "theirs": []}
        measure(ours, for_us)
        measure(theirs, for_them)
        # In turns, so that whatever else the machine does troubles both alike.
        for _ in range(ROUNDS):
            rounds["ours"].append(measure(ours, for_us))
            rounds["theirs"].append(measure(theirs, for_them))
        median = {
            who: [statistics.median(times) for times in zip(*of)] for who, of in rounds.items()
        }
        figures = [median[who][verb] for verb in (0, 1) for who in ("ours", "theirs")]
        print(row.format(name, *(f"{figure:.1f}" for figure in figures)))


main()
