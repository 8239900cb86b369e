"""Whether the picture of a live source has frozen: cameras go on sending the same one."""

import numpy as np

from mod_edge.runtime.capture.source import Image


class FrozenWatch:
    """Compares each picture with the one before.

    Args:
        frozen_after_s: a picture whose bytes stay identical for longer has frozen.

    Attributes:
        is_frozen: whether it has.
        still_s: seconds between the first and the last of the newest identical pictures.
        num_freezes: so far.
    """

    def __init__(self, frozen_after_s: float) -> None:
        self.is_frozen = False
        self.still_s = 0.0
        self.num_freezes = 0
        self._frozen_after_s = frozen_after_s
        self._image: Image | None = None
        self._since_s = 0.0

    def has_changed(self, image: Image, time_s: float) -> bool:
        """Whether the picture has just frozen or just moves again, as `is_frozen` then says.

        Args:
            image: the newest picture.
            time_s: when it arrived.
        """
        was_frozen = self.is_frozen
        if self._image is None or not np.array_equal(image, self._image):
            self.still_s = time_s - self._since_s if was_frozen else 0.0
            self._image, self._since_s, self.is_frozen = image, time_s, False
        else:
            self.still_s = time_s - self._since_s
            self.is_frozen = self.still_s > self._frozen_after_s
        self.num_freezes += self.is_frozen and not was_frozen
        return self.is_frozen != was_frozen

    def skip(self, gap_s: float) -> None:
        """Do not count seconds without pictures, before the next one, as identical pictures."""
        self._since_s += gap_s
