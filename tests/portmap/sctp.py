# SCTP (RFC 9260) as far as the first two packets of an association, over raw sockets: kernels
# without SCTP sockets can still translate it. A cookie in the second packet carries an answer.
# Prepended to serve.py and call.py.
import socket, struct

INIT, INIT_ACK, STATE_COOKIE = 1, 2, 7
TAG = 0x636e6962


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def sctp_socket(family):
    return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)


def sctp_packet(source, destination, tag, kind, cookie=b''):
    body = struct.pack('!IIHHI', TAG, 65535, 1, 1, 1)
    if cookie:
        body += struct.pack('!HH', STATE_COOKIE, 4 + len(cookie)) + cookie
    chunk = struct.pack('!BBH', kind, 0, 4 + len(body)) + body + bytes(-len(body) % 4)
    ports = struct.pack('!HHI', source, destination, tag)
    # The checksum alone is in the order of a little-endian machine.
    return ports + struct.pack('<I', crc32c(ports + bytes(4) + chunk)) + chunk


# Source and destination port, kind of chunk, sender's tag, cookie.
def sctp_parse(family, packet):
    if family == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4:]
    source, destination = struct.unpack_from('!HH', packet)
    kind, _, length = struct.unpack_from('!BBH', packet, 12)
    tag, = struct.unpack_from('!I', packet, 16)
    return source, destination, kind, tag, packet[36:12 + length]
