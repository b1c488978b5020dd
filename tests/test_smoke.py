import pytest
from harness import MODES, until


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_waits_for_the_request_in_flight(serve, mode):
    server = serve(mode)
    held = server.begin("/hold/a")
    from harness import Pending

    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"]) == ("drained", 1, 0)
    assert server.wait() == 0
    assert "on_stop" in server.lines
    assert "atexit" in server.lines
