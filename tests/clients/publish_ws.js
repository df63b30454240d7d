// Publishes with mqtt.js over WebSocket in every QoS, and writes what was sent to standard output, as publish.py does.
// usage: node publish_ws.js URL VERSION FIRST [CA.pem]
"use strict";

const fs = require("node:fs");
const mqtt = require("mqtt");

const MESSAGES = 25;
const WAIT = 60_000; // milliseconds until a client that hangs fails the run

// One payload, as a row that read_back.py expects.
function reading(number) {
  const two = String(number % 60).padStart(2, "0");
  const three = String(number % 1000).padStart(3, "0");
  const row = { ts: `2026-01-02T03:04:${two}.${three}Z`, number, temp: number / 4 };
  if (number % 3 === 0) {
    row.note = `ünïcode “${number}”`;
  }
  return row;
}

async function publish(url, version, qos, first, ca) {
  const clientId = `mqttjs-${new URL(url).protocol.slice(0, -1)}-${version}-${qos}`;
  const client = await mqtt.connectAsync(url, {
    protocolVersion: version === "5" ? 5 : 4,
    clientId,
    ca,
    reconnectPeriod: 0,
    connectTimeout: WAIT,
  });
  const topic = `site/web/${clientId}/temp`;
  const sent = [];
  const handles = [];
  for (let number = first; number < first + MESSAGES; number += 1) {
    const row = reading(number);
    handles.push(client.publishAsync(topic, JSON.stringify(row), { qos }));
    sent.push({ dataset: "temperature", topic, client_id: clientId, qos, retain: false, site: "web", device: clientId, ...row });
  }
  const large = Buffer.alloc(100_000, "x");
  handles.push(client.publishAsync(`raw/${clientId}`, large, { qos }));
  sent.push({ dataset: "messages", topic: `raw/${clientId}`, client_id: clientId, qos, value: large.toString("hex") });
  await Promise.all(handles);
  await client.endAsync();
  return sent;
}

async function main() {
  const [url, version, first, ca] = process.argv.slice(2);
  setTimeout(() => { throw new Error(`${url}: no acknowledgement in time`); }, WAIT).unref();
  const trusted = ca === undefined ? undefined : fs.readFileSync(ca);
  let sent = [];
  for (const qos of [0, 1, 2]) {
    sent = sent.concat(await publish(url, version, qos, Number(first) + qos * MESSAGES, trusted));
  }
  process.stdout.write(JSON.stringify(sent));
}

main();
