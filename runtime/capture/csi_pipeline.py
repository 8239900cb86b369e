"""The GStreamer pipeline of a camera at a Jetson's CSI connector."""

from fractions import Fraction

from mod_edge.profiles import Camera


def csi_pipeline(sensor: int, wanted: Camera) -> str:
    """The pipeline that reads a sensor through NVIDIA's image signal processor.

    Args:
        sensor: `sensor-id` of nvarguscamerasrc, from 0.
        wanted: size and rate; the processor scales the sensor's mode to them.
    """
    rate = Fraction(wanted.fps).limit_denominator(1001)  # 29.97... is 30000/1001
    return " ! ".join(
        (
            f"nvarguscamerasrc sensor-id={sensor}",
            f"video/x-raw(memory:NVMM),width={wanted.width},height={wanted.height},"
            f"framerate={rate.numerator}/{rate.denominator}",
            "nvvidconv",
            "video/x-raw,format=BGRx",
            "videoconvert",
            "video/x-raw,format=BGR",
            "appsink drop=true max-buffers=1",  # old frames are not queued
        )
    )
