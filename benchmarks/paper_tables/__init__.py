"""The paper's comparisons at small scale: resumable runs and the page of results."""
