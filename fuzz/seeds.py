#!/usr/bin/env python3
"""Writes the seeds that fuzzing starts from: a few small inputs of each shape, beside this file in seeds/."""

import pathlib

SEEDS = pathlib.Path(__file__).parent / "seeds"


def frame(kind, payload=b""):
    return bytes([kind]) + len(payload).to_bytes(3, "big") + payload


def number(count):
    return count.to_bytes(8, "big")


CLIENT = frame(0, b"hello") + frame(0x12, number(0)) + frame(4, b"INT") + frame(0x10, number(7)) + frame(0) + frame(0x13)
SERVER = frame(1, b"out") + frame(2, b"err") + frame(0x81, b"later") + frame(1) + frame(2) + frame(3, b"\0\0\0\0\7")
PROBLEM = b'{"type":"urn:tstunnel:host-unknown","title":"x","status":421,"detail":"no host `x`"}'
JSON = b"Content-Type: application/problem+json\r\nContent-Length: %d\r\n" % len(PROBLEM)

FILES = {
    "frame/client": b"\x03" + CLIENT,
    "frame/server": b"\x00" + SERVER,
    "frame/too-long": b"\xff\x00\x10\x00\x01",
    "head/upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tstunnel/1\r\nTstunnel-Window:  65536 \r\n\r\n\1\0\0\0",
    "head/refusal": b"HTTP/1.1 421 Misdirected Request\r\n" + JSON + b"\r\n" + PROBLEM,
    "head/not-http": b"SSH-2.0-OpenSSH_9.2\r\n",
    # Write, carry in part, resume, carry, consume out of order, wait, acknowledge.
    "session/interrupted": bytes([0, 64, 12])
    + bytes([0, 9, 1, 20, 2, 5, 11, 3, 2, 255, 4, 10, 11, 1, 4, 255, 6, 1, 7, 0, 8, 1, 9, 0])
    + CLIENT + SERVER,
    "session/signals": bytes([0, 16, 8]) + bytes([10, 0] * 5 + [2, 255, 11, 3, 2, 30]) + SERVER,
    "session/hostile": bytes([1, 0, 0]) + SERVER + frame(1, b"after the end"),
}

for name, content in FILES.items():
    path = SEEDS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
