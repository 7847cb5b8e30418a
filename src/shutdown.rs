//! From SIGTERM to the end of the process: not ready, serving on, draining, gone.
