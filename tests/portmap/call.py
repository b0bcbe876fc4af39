# call.py PROTOCOL ADDRESS PORT OWN-PORT: prints the answer, or nothing after two seconds without
# one. Own port 0 is any.
import os, sys, time

kind, address, port, own = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
if kind == 'sctp':
    own = own or 20000 + os.getpid() % 40000
    s = sctp_socket(family)
    s.sendto(sctp_packet(own, port, 0, INIT), (address, 0))
    end = time.monotonic() + 2
    while (left := end - time.monotonic()) > 0:
        s.settimeout(left)
        try:
            packet, peer = s.recvfrom(1000)
        except TimeoutError:
            break
        theirs, ours, chunk, _, cookie = sctp_parse(family, packet)
        if (peer[0], theirs, ours, chunk) == (address, port, own, INIT_ACK):
            print(cookie.decode())
            break
    sys.exit()
s = socket.socket(family, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
s.settimeout(2)
try:
    if own:
        s.bind(('', own))
    s.connect((address, port))
    if kind == 'udp':
        s.send(b'?')
    print(s.recv(200).decode())
except OSError:
    pass
