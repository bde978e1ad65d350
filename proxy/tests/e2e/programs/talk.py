"""Talks to the proxy in octets: conversations come as JSON on stdin, what was heard goes as JSON to stdout.

A conversation is a list of steps: {"send": hex}, {"until": hex}, {"half_close": true}, {"to_end": true}.
"""

import json
import os
import socket
import sys
from urllib.parse import urlsplit

PATIENCE_S = 20


def hold(proxy, steps):
    heard = bytearray()
    with socket.create_connection(proxy, PATIENCE_S) as connection:
        for step in steps:
            if "send" in step:
                connection.sendall(bytes.fromhex(step["send"]))
            elif "half_close" in step:
                connection.shutdown(socket.SHUT_WR)
            else:
                mark = bytes.fromhex(step["until"]) if "until" in step else None
                while mark is None or mark not in heard:
                    octets = connection.recv(65536)
                    if not octets:
                        break
                    heard += octets
                if mark is not None and mark not in heard:
                    break
    return heard.hex()


proxy = urlsplit(os.environ["http_proxy"])
conversations = json.load(sys.stdin)
json.dump([hold((proxy.hostname, proxy.port), steps) for steps in conversations], sys.stdout)
