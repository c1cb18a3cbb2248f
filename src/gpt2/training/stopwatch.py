"""What an update's time goes into."""

import time

import torch


class Stopwatch:
    """Splits time into parts, by the device's own clock where that runs behind the program's; nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """What happened since the last mark was `part`."""
        self.marks.append((part, self._now()))

    def _now(self) -> "float | torch.cuda.Event":
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, once the device is done with them."""
        found: dict[str, float] = {}
        for (_, begin), (part, end) in zip(self.marks, self.marks[1:], strict=False):
            if isinstance(begin, float) and isinstance(end, float):
                took = end - begin
            else:
                assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
                took = begin.elapsed_time(end) / 1000
            found[part] = found.get(part, 0.0) + took
        return found
