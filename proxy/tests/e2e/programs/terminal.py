"""terminal.py MARK KEYS CMD…: runs CMD on a terminal of 80 columns, types KEYS once MARK has appeared, prints all that
appeared, and ends with CMD's exit code."""

import fcntl
import os
import pty
import struct
import sys
import termios

mark, keys, command = sys.argv[1].encode(), sys.argv[2].encode(), sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    # Here and not in the parent: the size must be there before anybody asks.
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execvp(command[0], command)
seen = b""
while True:
    try:
        octets = os.read(terminal, 65536)
    except OSError:  # EIO: everybody has closed the terminal
        break
    if not octets:
        break
    seen += octets
    if keys and mark in seen:
        os.write(terminal, keys)
        keys = b""
sys.stdout.buffer.write(seen)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
