"""Publishes with paho-mqtt to an agent that is killed (SIGKILL) and started again, then looks for every message in the
dataset.

usage: kill9.py run DIRECTORY KILLS FOREBAY...       leaves the spool as the last kill left it, and what was acknowledged
       kill9.py check DIRECTORY DATASETS_DIR         every message is a row, each of QoS 2 once

FOREBAY... is how the binary is called, an emulator before it perhaps. DIRECTORY gets config, log, data and sent.json.
"""

import collections
import json
import pathlib
import random
import socket
import subprocess
import sys
import threading
import time

import paho.mqtt.client as mqtt
import pyarrow.parquet
from paho.mqtt.enums import CallbackAPIVersion

HOST = "127.0.0.1"
DEVICES = 6  # a third of them each QoS, but 0: of that nothing is promised
WAIT = 120  # seconds until something that hangs fails the run
PACE = 0.004  # seconds between two messages of a device

# Nothing is sealed while it runs: whoever seals in the end seals all of it.
CONFIG = """
gateway = "gw-kill9"
[log]
format = "json"
[batch]
age = "1h"
[[listener]]
bind = "127.0.0.1:{port}"
[upstream]
url = "file://{directory}/upstream"
[[dataset]]
name = "temperature"
topics = ["site/{{site}}/{{device}}/temp"]
event_time = "ts"
envelope = ["topic", "client_id", "qos", "received_at"]
merge = {{ kind = "Ledger", primaryKey = ["device", "number"] }}
[dataset.schema]
ts = "Timestamp"
number = "Int64"
temp = "Float32"
ratio = "Float64?"
note = "String?"
"""


class Device:
    """A client with a session that outlives its connection; it knows what was acknowledged."""

    def __init__(self, index, port):
        self.name, self.qos = f"paho-{index}", 1 + index % 2
        self.topic = f"site/hall-{index % 3}/{self.name}/temp"
        self.sent, self.acknowledged = {}, set()  # number by packet id; packet ids, which a short run does not use twice
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, clean_session=False)
        self.client.on_publish = lambda _client, _data, mid, _reason, _props: self.acknowledged.add(mid)
        self.client.max_inflight_messages_set(16)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect(HOST, port)
        self.client.loop_start()

    def run(self, stop):
        number = 0
        while not stop.is_set():
            row = {"ts": f"2026-01-02T03:{number // 60 % 60:02}:{number % 60:02}.{number % 1000:03}Z", "number": number,
                   "temp": random.uniform(-40, 85)}
            if number % 3 == 0:
                row |= {"ratio": random.random(), "note": f"ünïcode “{number}”"}
            handle = self.client.publish(self.topic, json.dumps(row), qos=self.qos)
            if handle.rc in (mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_NO_CONN):  # kept, and sent again
                assert handle.mid not in self.sent, "a packet id for the second time"
                self.sent[handle.mid] = number
                number += 1
            time.sleep(PACE)

    def settle(self):
        deadline = time.monotonic() + WAIT
        while waiting := self.sent.keys() - self.acknowledged:
            assert time.monotonic() < deadline, f"{self.name}: {len(waiting)} messages were never acknowledged"
            time.sleep(0.05)
        self.client.loop_stop()


def start(forebay, directory):
    began = time.monotonic()
    log = open(directory / "log", "ab")
    options = ["run", "--config", str(directory / "forebay.toml")]
    agent = subprocess.Popen([*forebay, *options], stderr=log, cwd=directory, env={
        "FOREBAY__DATA_DIR": str(directory / "data"), "PATH": "/usr/bin:/bin"})
    return agent, began


def first_acknowledgement(port, deadline=WAIT):
    """Seconds of nothing but trying."""
    end = time.monotonic() + deadline
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < end, "the agent does not listen"
            time.sleep(0.002)
    client, done = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="first"), threading.Event()
    client.on_publish = lambda *_: done.set()
    client.connect(HOST, port)
    client.loop_start()
    client.publish("site/x/first/temp", '{"ts":"2026-01-01T00:00:00Z","number":0,"temp":0}', qos=1)
    assert done.wait(deadline), "no acknowledgement"
    client.disconnect()
    client.loop_stop()


def resident_kib(pid):
    for line in open(f"/proc/{pid}/status", encoding="utf-8"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def run(directory, kills, forebay):
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    (directory / "forebay.toml").write_text(CONFIG.format(port=port, directory=directory), encoding="utf-8")
    (directory / "upstream").mkdir()
    agent, began = start(forebay, directory)
    try:
        first_acknowledgement(port)
        print(f"start to first acknowledgement: {(time.monotonic() - began) * 1000:.0f} ms; "
              f"RSS then {resident_kib(agent.pid) / 1024:.1f} MiB (an emulator included, if there is one)")
        devices = [Device(index, port) for index in range(DEVICES)]
        stop = threading.Event()
        threads = [threading.Thread(target=device.run, args=(stop,)) for device in devices]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            time.sleep(random.uniform(1.5, 3))
            agent.kill()
            agent.wait()
            agent, _ = start(forebay, directory)
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        for device in devices:
            device.settle()
    finally:
        agent.kill()
        agent.wait()
    errors = [line for line in open(directory / "log", encoding="utf-8") if '"level":"ERROR"' in line]
    assert not errors, f"the agent logged {errors[0]}"
    sent = [{"device": device.name, "qos": device.qos, "number": number}
            for device in devices for number in device.sent.values()]
    (directory / "sent.json").write_text(json.dumps(sent), encoding="utf-8")
    print(f"{len(sent)} messages acknowledged over {kills + 1} kill -9")


def check(directory, datasets):
    sent = json.loads((directory / "sent.json").read_text(encoding="utf-8"))
    files = sorted((datasets / "temperature" / "data").iterdir())
    rows = collections.Counter()
    for path in files:
        table = pyarrow.parquet.read_table(path, columns=["device", "number"])
        rows.update(zip(table["device"].to_pylist(), table["number"].to_pylist()))
    lost = [message for message in sent if (message["device"], message["number"]) not in rows]
    twice = [key for key, count in rows.items() if count > 1]
    assert not lost, f"lost {len(lost)}, the first is {lost[0]}"
    assert not twice, f"twice {len(twice)}, the first is {twice[0]}"
    assert sum(rows.values()) == len(sent) + 1, f"{sum(rows.values())} rows"  # and the first of all
    print(f"lost 0, twice 0: {len(sent)} acknowledged messages are rows in {len(files)} slices")


def main():
    directory = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "run":
        run(directory, int(sys.argv[3]), sys.argv[4:])
    else:
        check(directory, pathlib.Path(sys.argv[3]))


main()
