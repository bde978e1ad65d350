"""Packets and frames written by hand, as root of the sandbox: `frames.py WHAT`.

Told by the environment: LINK, SELF, GATE, BESIDE (addresses; …6 for IPv6), GATE_MAC, BESIDE_MAC.
"""
import fcntl
import os
import socket
import struct
import sys

LINK, SELF, GATE, BESIDE = (os.environ[name] for name in ("LINK", "SELF", "GATE", "BESIDE"))
SELF6, GATE6, BESIDE6 = (os.environ[name] for name in ("SELF6", "GATE6", "BESIDE6"))


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


GATE_MAC, BESIDE_MAC = mac(os.environ["GATE_MAC"]), mac(os.environ["BESIDE_MAC"])
SIOCGIFHWADDR = 0x8927
with socket.socket() as s:
    OWN_MAC = fcntl.ioctl(s, SIOCGIFHWADDR, struct.pack("256s", LINK.encode()))[18:24]
BROADCAST = b"\xff" * 6


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source, destination, protocol, payload, fragment=0, options=b""):
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 7, fragment, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    ) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(source, destination, protocol, payload):
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255) + addresses + payload


def syn(source, destination, port):
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", 6, 20)
    head = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 0x50, 2, 65535, 0, 0)
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]


def udp(port, payload=b"out"):
    return struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload


def icmp6(source, destination, message):
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    pseudo = addresses + struct.pack("!II", len(message), 58)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return ip6(source, destination, 58, message)


def frames(payloads, kind=0x0800, to=GATE_MAC, sender=OWN_MAC):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((LINK, 0))
        for payload in payloads:
            s.send(to + sender + struct.pack("!H", kind) + payload)


def advertisement(target, hardware):
    own = socket.inet_pton(socket.AF_INET6, target)
    return struct.pack("!BBHI", 136, 0, 0, 0x60000000) + own + b"\x02\x01" + hardware


def arp(operation, sender, sender_mac, target):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + socket.inet_aton(sender) + (
        BROADCAST + socket.inet_aton(target)
    )


def tunnels():
    """Every encapsulation, from the true address and from others, whatever the kernel has drivers for."""
    inner = ip4(SELF, BESIDE, 6, syn(SELF, BESIDE, 80))
    inner6 = ip6(SELF6, BESIDE6, 17, udp(80))
    ether = BESIDE_MAC + OWN_MAC + b"\x08\x00" + inner
    numbers = {
        4: inner, 41: inner6, 47: b"\0\0\x08\0" + inner, 50: b"\0" * 32, 51: b"\0" * 32, 94: inner, 97: b"\x30\0" + ether,
        115: b"\0" * 8 + inner, 132: b"\0" * 32, 33: b"\0" * 32, 136: udp(80), 137: inner, 2: b"\x16\0\0\0" + b"\0" * 4,
        1: b"\x08\0" + struct.pack("!H", checksum(b"\x08\0\0\0\0\1\0\1")) + b"\0\1\0\1",
    }
    ports = {
        4789: b"\x08\0\0\0\0\0\x05\0" + ether, 6081: b"\0\0\x65\x58\0\0\x05\0" + ether, 51820: b"\1\0\0\0" + b"\0" * 144,
        1701: b"\0" * 32, 5555: inner, 500: b"\0" * 32, 4500: b"\0" * 32, 53: b"\0" * 32, 443: b"\xc0" + b"\0" * 1199,
    }
    for source in (SELF, BESIDE, GATE, "192.0.2.99"):
        for to in (GATE, BESIDE):
            frames([ip4(source, to, number, payload) for number, payload in numbers.items()])
            frames([ip4(source, to, 17, udp(port, payload)) for port, payload in ports.items()])
    frames([ip6(SELF6, to, number, inner) for to in (GATE6, BESIDE6) for number in (4, 41, 47)], 0x86DD)


def disguises():
    """What a filter that looks at one header might take for the connection to the proxy."""
    hello = syn(SELF, GATE, 3128)
    packets = [
        # To the proxy's port, but of another host; from it, but of another source.
        ip4(SELF, BESIDE, 6, syn(SELF, BESIDE, 3128)),
        ip4(BESIDE, GATE, 6, syn(BESIDE, GATE, 3128)),
        ip4(GATE, GATE, 6, syn(GATE, GATE, 3128)),
        ip4("127.0.0.1", GATE, 6, syn("127.0.0.1", GATE, 3128)),
        # UDP and SCTP ports where TCP's are.
        ip4(SELF, GATE, 17, udp(3128)),
        ip4(SELF, GATE, 132, struct.pack("!HH", 40000, 3128) + b"\0" * 28),
        # A later fragment that holds a fitting port.
        ip4(SELF, GATE, 6, hello, fragment=4),
        ip4(SELF, GATE, 17, udp(22), fragment=0x2000),
        # The port of the proxy behind options, where without them another would be.
        ip4(SELF, GATE, 6, syn(SELF, GATE, 22), options=struct.pack("!BBBB", 1, 1, 1, 0) + struct.pack("!HH", 40000, 3128)),
        # A source route through the proxy's address.
        ip4(SELF, BESIDE, 6, hello, options=b"\x83\x07\x04" + socket.inet_aton(GATE) + b"\0"),
    ]
    frames(packets)
    frames(packets, to=BESIDE_MAC)
    frames(packets, to=BROADCAST)
    frames(packets, to=b"\x01\x00\x5e\x00\x00\x01")
    frames(packets, sender=GATE_MAC)


def tags():
    """Frames that carry the packet deeper: VLAN, VLAN in VLAN, MPLS, PPPoE; and what is no IP at all."""
    packet = ip4(SELF, GATE, 6, syn(SELF, GATE, 22))
    frames([struct.pack("!HH", 7, 0x0800) + packet, struct.pack("!HH", 0, 0x0800) + packet], 0x8100)
    frames([struct.pack("!HHHH", 7, 0x8100, 8, 0x0800) + packet], 0x88A8)
    frames([b"\0\x01\x01\x40" + packet], 0x8847)
    frames([b"\x11\0\0\1" + struct.pack("!HH", len(packet) + 2, 0x21) + packet], 0x8864)
    for kind in (0x88CC, 0x0806, 0x22F0, 0x88F7, 0x0004, 0x6558):
        frames([b"\0" * 60], kind, to=BROADCAST)


def neighbours():
    """Says to be the host, and the neighbour, to everybody."""
    for other in (GATE, BESIDE, "10.9.0.77", "0.0.0.0"):
        frames([arp(operation, other, OWN_MAC, to) for operation in (1, 2) for to in (GATE, other)], 0x0806, BROADCAST)
    everybody = "ff02::1"
    for target in (GATE6, BESIDE6, "fd09::77"):
        for source in (SELF6, target):
            frames([icmp6(source, to, advertisement(target, OWN_MAC)) for to in (GATE6, everybody)], 0x86DD)
    # A router too, and a better way.
    advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + b"\x01\x01" + OWN_MAC
    redirect = struct.pack("!BBHI", 137, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, SELF6) * 2
    frames([icmp6(SELF6, everybody, advert), icmp6(SELF6, GATE6, redirect)], 0x86DD)


{"tunnels": tunnels, "disguises": disguises, "tags": tags, "neighbours": neighbours}[sys.argv[1]]()
