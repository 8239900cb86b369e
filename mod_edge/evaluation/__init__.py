"""How well a model streams over a data set: fed with the right words, and left to itself."""
