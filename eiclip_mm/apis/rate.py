"""How often one client may ask."""

from ipaddress import ip_address, ip_network

ADDRESSES = 10_000  # that are remembered; the memory of a service must not grow with its clients


class Rate:
    """How often each address may ask.

    Args:
        per_second: requests on the mean; as many may come at once, at least one.
    """

    def __init__(self, per_second: float):
        self.step, self.ahead = 1 / per_second, max(1.0, 1 / per_second)
        self.due: dict[str, float] = {}  # when the last request would have come at an even pace

    def wait(self, address: str, now: float) -> float:
        """Seconds until the address may ask; 0: now, and the request counts.

        Args:
            address: of the client; of an IPv6 network of 2**64 addresses, any.
            now: in seconds, of a clock that does not go back.
        """
        address = _network(address)
        due = max(self.due.pop(address, 0.0), now) + self.step  # again at the end: dicts have order
        if due - now > self.ahead + 1e-9:
            self.due[address] = due - self.step
            return due - now - self.ahead
        self.due[address] = due
        if len(self.due) > ADDRESSES:
            del self.due[next(iter(self.due))]
        return 0.0


def _network(address: str) -> str:
    try:
        six = ip_address(address).version == 6
    except ValueError:  # of a test client, or a socket of this machine
        return address
    return str(ip_network((address, 64), strict=False)) if six else address
