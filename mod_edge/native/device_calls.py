"""What a program asks of a GPU: copies, waits, launches of CUDA graphs, allocations."""

from dataclasses import asdict, dataclass


@dataclass
class DeviceCalls:
    """Numbers of calls so far.

    Attributes:
        uploads: copies from the host, from pinned memory.
        copies: within the device.
        downloads: copies to the host, to pinned memory.
        waits: of the host, until all work on the stream is done.
        upload_waits: of the host, until a block of inputs has been uploaded and may be written
            again; the block is that of the last step but one, so they rarely take time.
        graph_launches: of CUDA graphs.
        allocations: of device memory and of pinned memory.
    """

    uploads: int = 0
    copies: int = 0
    downloads: int = 0
    waits: int = 0
    upload_waits: int = 0
    graph_launches: int = 0
    allocations: int = 0

    def since(self, earlier: "DeviceCalls") -> "DeviceCalls":
        """The calls after `earlier`, a copy of an earlier state."""
        before = asdict(earlier)
        return DeviceCalls(**{name: count - before[name] for name, count in asdict(self).items()})
