"""Steps of this runtime beside those of other runtimes, on one geometry and one machine."""
