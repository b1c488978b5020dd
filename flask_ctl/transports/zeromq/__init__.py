"""Control over ZeroMQ: the listener, its sessions and limits, ZAP and CURVE."""
