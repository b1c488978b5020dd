"""Many workers behind one control socket.

A server that forks workers has no process in which a control thread could live: the master must have none while it
forks, and the workers come and go. So the first worker starts a small process of our own, the hub. It owns the control
sockets, knows the master by a pidfd and ends with it. The workers connect to it, and bring it back if it dies.

`hub` is that process, `agent` its part in each worker; both know `messages`.
"""
