"""The package as an operator meets it: install, start, ask, look, reload, restart, upgrade, remove."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from testbed.machine import Machine, at_work
from testbed.processes import wait_for

pytestmark = pytest.mark.timeout(240, func_only=True)  # making root, packages and machine is not counted
UNITS = ("gpu", "cpu")
ROUTES = ("accelerator", "cpu", "accelerator>cpu")
PROMPT = "What is a glacier?"
LOAD = """
import collections, http.client, json, sys, threading, time
end, seen = time.monotonic() + float(sys.argv[1]), collections.Counter()
def work():
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", 8010, timeout=60)
        try:
            connection.request("GET", "/v1/models")
            seen[str(connection.getresponse().status)] += 1
        except Exception as err:
            seen[type(err).__name__] += 1
        connection.close()
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(seen))
"""


def ask(machine: Machine, route: str) -> dict[str, Any]:
    """A chat answer over one route."""
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": "syshax-demo", "messages": messages, "max_tokens": 12, "temperature": 0}
    curl = f"curl -sS -m 60 -D /dev/stderr http://127.0.0.1:8010/v1/chat/completions -H 'x-syshax-route: {route}'"
    result = machine.run(f"{curl} -H 'Content-Type: application/json' -d '{json.dumps(body)}'")
    assert f"x-syshax-route: {route}" in result.stderr.lower(), result.stdout
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def unit_pids(machine: Machine) -> list[str]:
    """Main processes of the units, as systemd knows them."""
    return [machine.show(f"syshax-unit@{name}", "MainPID") for name in UNITS]


def journal(machine: Machine, *matches: str) -> list[dict[str, Any]]:
    """Journal entries of the daemon."""
    lines = machine.output(f"journalctl -o json --no-pager -u syshaxd {' '.join(matches)}").splitlines()
    return [json.loads(line) for line in lines]


def test_install_starts_nothing_and_makes_what_is_needed(fresh: Machine) -> None:
    fresh.run("dnf -q -y install sysHAX-0.3.0-1.ci")
    fresh.run("rpm -V sysHAX")
    assert fresh.output("systemctl is-active syshaxd syshaxd.socket || true").split() == ["inactive", "inactive"]
    assert fresh.output("stat -c '%U:%G %a' /dev/shm/syshax") == "syshax:syshax 2770"
    assert {"syshax", "docker", "systemd-journal"} <= set(fresh.output("id -nG syshax").split())
    assert fresh.output("man -w syshaxd syshax syshax.yaml").count("/usr/share/man/") == 3
    fresh.run("syshax check-config -q && syshax version")


def test_the_service_files_are_clean_and_the_sandboxes_tight(fresh: Machine) -> None:
    names = ("syshaxd.service", "syshaxd.socket", "syshax-unit@cpu.service")
    checked = fresh.run(f"systemd-analyze verify {' '.join(names)}")
    assert checked.stdout + checked.stderr == ""
    for name, limit in (("syshaxd.service", 2.0), ("syshax-unit@cpu.service", 2.0)):
        lines = fresh.output(f"systemd-analyze security --no-pager {name}").splitlines()
        score = re.search(r"exposure level for .*: ([\d.]+)", lines[-1])
        assert score is not None and float(score[1]) <= limit, lines[-1]


def test_start_and_a_split_answer(machine: Machine) -> None:
    texts = {ask(machine, route)["choices"][0]["message"]["content"] for route in ROUTES}
    assert len(texts) == 1 and texts != {""}

    def told_ready() -> bool:
        status = machine.show("syshaxd", "StatusText")
        return all(f"{name}: ready" in status for name in UNITS)

    wait_for("both units in the status line, which is written once a second", told_ready, 10)


def test_pins_are_in_force_under_the_shipped_sandbox(machine: Machine) -> None:
    masks = []
    for pid in unit_pids(machine):
        lines = machine.output(f"grep -h Cpus_allowed_list /proc/{pid}/task/*/status").splitlines()
        masks.append({line.split()[1] for line in lines})
    assert masks[0].isdisjoint(masks[1]), masks
    host = machine.output("grep -h Cpus_allowed_list /proc/1/status").split()[1]
    assert all(host not in mask for mask in masks), (host, masks)


def test_the_journal_has_fields_and_no_prompts(machine: Machine) -> None:
    ask(machine, "cpu")
    entries = wait_for("access line", lambda: [e for e in journal(machine) if "SYSHAX_REQUEST_ID" in e])
    assert entries[-1]["PRIORITY"] == "6"
    ready = [entry for entry in journal(machine) if entry.get("SYSHAX_UNIT") == "gpu" and "MESSAGE_ID" in entry]
    assert ready, "no unit event with a MESSAGE_ID"
    assert PROMPT not in json.dumps(journal(machine))


def test_a_good_reload_applies_and_a_bad_one_changes_nothing(machine: Machine) -> None:
    machine.run("echo 'limits: {max_queue: 77}' > /etc/syshax/a.yaml && systemctl reload syshaxd")
    assert "0/77" in machine.show("syshaxd", "StatusText")
    machine.run("echo 'limits: {max_cue: 1}' > /etc/syshax/a.yaml")
    refused = machine.run("systemctl reload syshaxd", check=False)
    assert refused.returncode != 0
    assert machine.show("syshaxd", "ActiveState") == "active" and "0/77" in machine.show("syshaxd", "StatusText")
    assert any("max_queue" in entry["MESSAGE"] for entry in journal(machine, "-n", "50")), "no hint in the journal"
    machine.run("rm /etc/syshax/a.yaml && systemctl reload syshaxd")
    ask(machine, "accelerator>cpu")


def test_a_restart_keeps_the_units_and_refuses_nobody(machine: Machine) -> None:
    before = unit_pids(machine)
    machine.run(f"cat > /tmp/load.py <<'END'\n{LOAD}\nEND")
    result = machine.output("python3 /tmp/load.py 6 & sleep 1; systemctl restart syshaxd; wait")
    seen = json.loads(result)
    assert seen.pop("200") > 20
    # A connection that was open at the moment of the stop may end; none may be refused.
    assert set(seen) <= {"RemoteDisconnected", "ConnectionResetError", "503"}, seen
    wait_for("the daemon is back", lambda: at_work(machine), 60)
    assert unit_pids(machine) == before
    ask(machine, "accelerator>cpu")


def test_a_killed_unit_comes_back(machine: Machine) -> None:
    before = unit_pids(machine)
    machine.run(f"kill -9 {before[1]}")
    wait_for("a new cpu unit", lambda: unit_pids(machine)[1] not in ("0", before[1]) and at_work(machine), 60)
    assert unit_pids(machine)[0] == before[0]


def test_the_watchdog_ends_a_daemon_that_hangs(machine: Machine) -> None:
    drop_in = "/run/systemd/system/syshaxd.service.d"
    machine.run(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=3\\n' > {drop_in}/watchdog.conf")
    machine.run("systemctl daemon-reload && systemctl restart syshaxd")
    units, daemon = unit_pids(machine), machine.show("syshaxd", "MainPID")
    machine.run(f"kill -STOP {daemon}")
    wait_for("a new daemon", lambda: machine.show("syshaxd", "MainPID") not in ("0", daemon) and at_work(machine), 60)
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in journal(machine))
    assert unit_pids(machine) == units
    machine.run(f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart syshaxd")


def test_bad_configuration_at_start_fails_once(machine: Machine) -> None:
    machine.run("systemctl stop syshaxd.socket syshaxd && echo 'oops: 1' > /etc/syshax/a.yaml")
    assert machine.run("systemctl start syshaxd", check=False).returncode != 0
    expected = {"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert {name: machine.show("syshaxd", name) for name in expected} == expected
    machine.run("rm /etc/syshax/a.yaml && systemctl start syshaxd")


def test_the_daemon_may_start_its_units_and_nothing_else(machine: Machine) -> None:
    for command in ("stop dbus", "start syshax-podman.service", "restart syshaxd"):
        refused = machine.run(f"runuser -u syshax -- systemctl --no-ask-password {command}", check=False)
        assert refused.returncode != 0, command


def test_upgrade_keeps_the_configuration_and_the_units(machine: Machine) -> None:
    machine.run("echo '# edited by hand' >> /etc/syshax/syshax.yaml")
    units, daemon = unit_pids(machine), machine.show("syshaxd", "MainPID")
    machine.run("dnf -q -y upgrade sysHAX")
    assert machine.output("rpm -q sysHAX").startswith("sysHAX-0.3.0-2.ci")
    wait_for("the new daemon", lambda: machine.show("syshaxd", "MainPID") not in ("0", daemon) and at_work(machine), 60)
    assert unit_pids(machine) == units
    machine.run("grep -q 'edited by hand' /etc/syshax/syshax.yaml")
    ask(machine, "accelerator>cpu")


def test_stop_ends_the_units(machine: Machine) -> None:
    machine.run("systemctl stop syshaxd.socket syshaxd")
    assert unit_pids(machine) == ["0", "0"]
    assert machine.output("ls /dev/shm/syshax") == ""


def test_remove_leaves_only_what_was_edited(machine: Machine) -> None:
    machine.run("systemctl enable syshaxd && dnf -q -y remove sysHAX")
    assert machine.output("pgrep -u syshax || true") == ""
    found = machine.output("find / -xdev -path /proc -prune -o -path /srv -prune -o -iname '*syshax*' -print")
    kept = ("/etc/syshax", "/var/lib/syshax", "/var/cache", "/var/log", "/run", "/etc/yum.repos.d")
    left = [path for path in found.splitlines() if not path.startswith(kept) and "hostcompat" not in path]
    assert left == []
    machine.run("test -f /etc/syshax/syshax.yaml.rpmsave")
