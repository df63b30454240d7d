"""Reads the datasets with pyarrow and compares every row with what the clients sent.

usage: read_back.py DATASETS_DIR SENT.json
"""

import datetime
import json
import pathlib
import sys

import pyarrow
import pyarrow.parquet

UTC_MS = pyarrow.timestamp("ms", tz="UTC")
TYPES = {
    "temperature": {
        "offset": pyarrow.int64(), "op": pyarrow.int32(), "system_time": UTC_MS, "ts": UTC_MS,
        "gateway": pyarrow.string(), "seq": pyarrow.int64(), "site": pyarrow.string(), "device": pyarrow.string(),
        "number": pyarrow.int64(), "temp": pyarrow.float32(), "note": pyarrow.string(), "topic": pyarrow.string(),
        "client_id": pyarrow.string(), "qos": pyarrow.int32(), "retain": pyarrow.bool_(),
    },
    "messages": {
        "offset": pyarrow.int64(), "op": pyarrow.int32(), "system_time": UTC_MS, "event_time": UTC_MS,
        "gateway": pyarrow.string(), "seq": pyarrow.int64(), "value": pyarrow.binary(), "topic": pyarrow.string(),
        "client_id": pyarrow.string(), "qos": pyarrow.int32(),
    },
}


def read(directory):
    """All slices of one dataset in the order of their offsets, checked to be dense."""
    tables = [pyarrow.parquet.read_table(path) for path in (directory / "data").iterdir()]
    tables.sort(key=lambda table: table["offset"][0].as_py())
    table = pyarrow.concat_tables(tables)
    assert table["offset"].to_pylist() == list(range(table.num_rows)), f"{directory.name}: offsets have holes"
    seqs = table["seq"].to_pylist()
    assert all(one < other for one, other in zip(seqs, seqs[1:])), f"{directory.name}: seq does not rise"
    return table


def expected(message):
    """The row that a message must have become."""
    row = {name: value for name, value in message.items() if name != "dataset"}
    if message["dataset"] == "messages":
        return row | {"value": bytes.fromhex(row["value"])}
    row["ts"] = datetime.datetime.fromisoformat(row["ts"].replace("Z", "+00:00"))
    return {"note": None} | row


def key(row):
    return tuple(str(row[name]) for name in sorted(row))


def check(name, table, sent):
    types = {field.name: field.type for field in table.schema}
    assert list(types) == list(TYPES[name]), f"{name}: columns are {list(types)}"
    differing = {column: (types[column], wanted) for column, wanted in TYPES[name].items() if types[column] != wanted}
    assert not differing, f"{name}: types differ: {differing}"
    wanted = sorted((expected(message) for message in sent if message["dataset"] == name), key=key)
    columns = list(wanted[0])
    rows = sorted(table.select(columns).to_pylist(), key=key)
    rows = [{column: row[column] for column in columns} for row in rows]
    wanted = [{column: row[column] for column in columns} for row in wanted]
    missing = [row for row in wanted if row not in rows]
    assert not missing, f"{name}: {len(missing)} rows are missing, the first is {missing[0]}"
    assert len(rows) == len(wanted), f"{name}: {len(rows)} rows of {len(wanted)} messages"
    assert set(table["op"].to_pylist()) == {0}, f"{name}: every row is an append"
    assert set(table["gateway"].to_pylist()) == {"gw-clients"}
    print(f"{name}: {len(rows)} rows, each as it was sent; {len(types)} typed columns")


def main():
    datasets, path = pathlib.Path(sys.argv[1]), sys.argv[2]
    with open(path, encoding="utf-8") as file:
        sent = json.load(file)
    for name in TYPES:
        check(name, read(datasets / name), sent)


main()
