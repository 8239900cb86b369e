"""The paper's comparisons on a small scale: runs that can be resumed, and the page of results."""
