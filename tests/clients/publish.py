"""Publishes with paho-mqtt, mosquitto_pub and mqtt.js in every protocol and QoS, over TCP, TLS and WebSocket, with a
certificate and with a password, checks what must be refused, and waits until the agent has sealed it all. Writes what was
sent for read_back.py.

usage: publish.py DIRECTORY DIRECTORY_OF_THIS_FILE
The first has certificates, the agent's log and its data; NODE_PATH is where mqtt.js is.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

HOST = "127.0.0.1"
MESSAGES = 25
WAIT = 60  # seconds until a client that hangs fails the run
VERSIONS = {mqtt.MQTTv311: "311", mqtt.MQTTv5: "5"}


def reading(number):
    """One payload, as a row that read_back.py expects."""
    row = {"ts": f"2026-01-02T03:04:{number % 60:02}.{number % 1000:03}Z", "number": number, "temp": number / 4}
    if number % 3 == 0:
        row["note"] = f"ünïcode “{number}”"
    return row


def connect(port, client_id, version):
    """A connected paho client whose loop runs on a thread, and the event that its CONNACK set."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version)
    connected = threading.Event()
    client.on_connect = lambda _client, _data, _flags, reason, _props: reason == 0 and connected.set()
    client.connect(HOST, port)
    client.loop_start()
    assert connected.wait(WAIT), f"{client_id} was not accepted"
    return client


def publish_with_paho(port, version, qos, first):
    """Publishes typed rows and a few raw bytes; answers what was sent."""
    client_id = f"paho-{VERSIONS[version]}-{qos}"
    client = connect(port, client_id, version)
    topic = f"site/hall-{qos}/{client_id}/temp"
    sent, handles = [], []
    for number in range(first, first + MESSAGES):
        row = reading(number)
        retain = number % 5 == 0
        handles.append(client.publish(topic, json.dumps(row), qos=qos, retain=retain))
        sent.append({"dataset": "temperature", "topic": topic, "client_id": client_id, "qos": qos, "retain": retain,
                     "site": f"hall-{qos}", "device": client_id, **row})
    raw_topic = f"raw/{client_id}"
    for payload in (b"", bytes(range(256)), b"x" * 100_000):
        handles.append(client.publish(raw_topic, payload, qos=qos))
        sent.append({"dataset": "messages", "topic": raw_topic, "client_id": client_id, "qos": qos,
                     "value": payload.hex()})
    for handle in handles:
        handle.wait_for_publish(WAIT)
        assert handle.is_published(), f"{client_id}: no acknowledgement"
    end(client)
    return sent


def end(client):
    client.disconnect()
    client.loop_stop()


def publish_with_mosquitto(port, version, qos, first, site="yard", credentials=()):
    """The same by Debian's command line client, one process a message, and lines of standard input."""
    client_id = f"mosquitto-{site}-{version}-{qos}"
    topic = f"site/{site}/{client_id}/temp"
    rows = [reading(number) for number in range(first, first + MESSAGES)]
    base = ["mosquitto_pub", "-h", HOST, "-p", str(port), "-V", "mqttv" + version, "-q", str(qos), "-i", client_id,
            "-t", topic, *credentials]
    subprocess.run([*base, "-m", json.dumps(rows[0]), "-r"], check=True, timeout=WAIT)
    lines = "".join(json.dumps(row) + "\n" for row in rows[1:])
    subprocess.run([*base, "-l"], input=lines, text=True, check=True, timeout=WAIT)
    return [{"dataset": "temperature", "topic": topic, "client_id": client_id, "qos": qos, "retain": index == 0,
             "site": site, "device": client_id, **row} for index, row in enumerate(rows)]


def check_that_mosquitto_is_refused(port, credentials, topic, words):
    """A publisher whose password is wrong, or that may not publish there, is told so."""
    command = ["mosquitto_pub", "-h", HOST, "-p", str(port), "-V", "mqttv5", "-q", "1", "-t", topic, "-m", "{}",
               *credentials]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    said = (done.stdout + done.stderr).lower()
    assert any(word in said for word in words), f"{command}: {done}"


def publish_with_mqtt_js(here, url, version, first, *ca):
    """mqtt.js, in every QoS."""
    command = ["node", os.path.join(here, "publish_ws.js"), url, version, str(first), *ca]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=2 * WAIT)
    return json.loads(done.stdout)


def ports(log):
    """Where the agent listens, by what is spoken there."""
    found = {}
    for line in open(log, encoding="utf-8"):
        fields = json.loads(line)
        if fields["message"].startswith("Listening"):
            name = ("wss" if fields["tls"] else "ws") if fields["websocket"] else ("tls" if fields["tls"] else "plain")
            found[name] = int(fields["local_addr"].rpartition(":")[2])
    return found


def check_that_paho_is_refused(port, version):
    client = connect(port, f"subscriber-{VERSIONS[version]}", version)
    answered, codes = threading.Event(), []

    def on_subscribe(_client, _data, _mid, reasons, _props):
        codes.extend(reason.value for reason in reasons)
        answered.set()

    client.on_subscribe = on_subscribe
    if version == mqtt.MQTTv5:
        client.subscribe([("site/#", SubscribeOptions(qos=1)), ("raw", SubscribeOptions(qos=0))])
    else:
        client.subscribe([("site/#", 1), ("raw", 0)])
    assert answered.wait(WAIT), "SUBSCRIBE was not answered"
    wanted = 0x87 if version == mqtt.MQTTv5 else 0x80
    assert codes == [wanted, wanted], f"SUBSCRIBE was answered with {codes}"
    unsubscribed = threading.Event()
    client.on_unsubscribe = lambda *_: unsubscribed.set()
    client.unsubscribe("site/#")
    assert unsubscribed.wait(WAIT), "UNSUBSCRIBE was not answered"
    end(client)


def check_that_mosquitto_sub_is_refused(port, version):
    """mosquitto_sub ends by itself when every subscription is denied."""
    command = ["mosquitto_sub", "-h", HOST, "-p", str(port), "-V", "mqttv" + version, "-t", "site/#", "-q", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT)
    assert "denied" in (done.stdout + done.stderr).lower(), f"mosquitto_sub said {done}"


def wait_until_sealed(control, messages):
    """Asks the agent until all messages are stored (nobody hears when QoS 0 is) and none waits to be sealed."""
    deadline = time.monotonic() + WAIT
    while True:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(WAIT)
            asking.connect(control)
            asking.sendall(b'{"command":"status"}\n')
            spool = json.loads(asking.makefile().readline())["spool"]
        if spool["log_end"] >= messages and spool["waiting"] == 0:
            return
        assert time.monotonic() < deadline, f"not sealed: {spool}"
        time.sleep(0.05)


def publish_with_credentials(directory, port, version, qos, first):
    """mosquitto_pub over TLS: with a certificate, and with a password."""
    def file(name):
        return os.path.join(directory, name)

    trust = ["--cafile", file("ca.pem")]
    certificate = [*trust, "--cert", file("device-1.pem"), "--key", file("device-1.key")]
    sent = publish_with_mosquitto(port, version, qos, first, "device-1", certificate)
    # One of them was added by mosquitto_passwd, the other by `forebay passwd`.
    login = [*trust, *(("-u", "bob", "-P", "another secret") if qos == 1 else ("-u", "ann", "-P", "secret"))]
    return sent + publish_with_mosquitto(port, version, qos, first + MESSAGES, "login", login)


def check_who_is_refused(directory, port):
    def file(name):
        return os.path.join(directory, name)

    trust = ["--cafile", file("ca.pem")]
    other = [*trust, "--cert", file("device-2.pem"), "--key", file("device-2.key")]
    denied = ("not authorized", "not authorised")
    check_that_mosquitto_is_refused(port, other, "site/device-1/x/temp", denied)
    check_that_mosquitto_is_refused(port, trust, "site/login/x/temp", denied)
    wrong = ("bad user name or password", "bad username or password", "not authorised")
    check_that_mosquitto_is_refused(port, [*trust, "-u", "ann", "-P", "wrong"], "site/login/x/temp", wrong)


def main():
    directory, here = sys.argv[1], sys.argv[2]
    port = ports(os.path.join(directory, "log"))
    sent, first = [], 0
    has_mosquitto = shutil.which("mosquitto_pub") is not None
    if not has_mosquitto:
        print("SKIPPED: mosquitto_pub is not installed (Debian: mosquitto-clients)")
    has_mqtt_js = bool(os.environ.get("NODE_PATH")) and shutil.which("node") is not None
    if not has_mqtt_js:
        print("SKIPPED: mqtt.js is not installed (npm ci in a copy of this directory)")
    for version, name in VERSIONS.items():
        for qos in (0, 1, 2):
            sent += publish_with_paho(port["plain"], version, qos, first)
            first += MESSAGES
            if has_mosquitto:
                sent += publish_with_mosquitto(port["plain"], name, qos, first)
                first += MESSAGES
                sent += publish_with_credentials(directory, port["tls"], name, qos, first)
                first += 2 * MESSAGES
        check_that_paho_is_refused(port["plain"], version)
        if has_mosquitto:
            check_that_mosquitto_sub_is_refused(port["plain"], name)
        if has_mqtt_js:
            sent += publish_with_mqtt_js(here, f"ws://localhost:{port['ws']}/mqtt", name, first)
            ca = os.path.join(directory, "ca.pem")
            sent += publish_with_mqtt_js(here, f"wss://localhost:{port['wss']}/mqtt", name, first + 3 * MESSAGES, ca)
            first += 6 * MESSAGES
    if has_mosquitto:
        check_who_is_refused(directory, port["tls"])
    wait_until_sealed(os.path.join(directory, "data", "forebay.sock"), len(sent))
    with open(os.path.join(directory, "sent.json"), "w", encoding="utf-8") as file:
        json.dump(sent, file)
    clients = sorted({message["client_id"].rsplit("-", 2)[0] for message in sent})
    print(f"{len(sent)} messages published by real clients ({', '.join(clients)}); who must be refused was refused")


main()
