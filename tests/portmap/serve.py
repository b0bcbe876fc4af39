# serve.py PROTOCOL PORT WHO: answers WHO and the caller's address, over IPv4 and IPv6.
import select, sys

kind, port, who = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def answer(peer):
    return (who + ' ' + peer[0].removeprefix('::ffff:')).encode()


if kind == 'sctp':
    families = {sctp_socket(f): f for f in (socket.AF_INET, socket.AF_INET6)}
    print('ready', flush=True)
    while True:
        for s in select.select(list(families), [], [])[0]:
            packet, peer = s.recvfrom(1000)
            theirs, ours, chunk, tag, _ = sctp_parse(families[s], packet)
            if ours == port and chunk == INIT:
                s.sendto(sctp_packet(ours, theirs, tag, INIT_ACK, answer(peer)), peer)

s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', port))
if kind == 'tcp':
    s.listen()
print('ready', flush=True)
while True:
    if kind == 'udp':
        peer = s.recvfrom(100)[1]
        s.sendto(answer(peer), peer)
    else:
        c, peer = s.accept()
        c.send(answer(peer))
        c.close()
