"""Files of requests, answered row by row, whatever happens meanwhile: `softmux run`."""
